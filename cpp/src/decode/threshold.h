// The score threshold as a logit: one number for every device, so that all of them keep the same centres.
#pragma once

#include <cmath>
#include <limits>

namespace centermask {

// The smallest T that is not below log(t / (1 - t)).
template <class T>
T threshold_logit(double t) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  if (t <= 0) return -infinity;
  if (t >= 1) return infinity;
  const double exact = std::log(t / (1 - t));
  const T rounded = static_cast<T>(exact);
  return static_cast<double>(rounded) < exact ? std::nextafter(rounded, infinity) : rounded;
}

}  // namespace centermask
