// Threads are the host's: every op takes a ParallelFor and never starts a thread of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace centermask {

// Calls task(argument, i) once for every i in [0, count), from any thread, in any order, and returns when all are
// done. A task must not throw. `threads` is how many may run at once (>= 1): ops divide work and scratch by it.
// The default runs everything on the calling thread.
struct ParallelFor {
  using Task = void (*)(void* argument, std::int64_t index);
  void (*run)(void* host, std::int64_t count, Task task, void* argument) = nullptr;
  void* host = nullptr;
  int threads = 1;

  template <class Function>
  void operator()(std::int64_t count, Function&& function) const {
    auto task = [](void* argument, std::int64_t index) {
      (*static_cast<std::remove_reference_t<Function>*>(argument))(index);
    };
    void* argument = const_cast<void*>(static_cast<const void*>(&function));
    if (run == nullptr || threads <= 1 || count <= 1) {
      for (std::int64_t i = 0; i < count; ++i) task(argument, i);
    } else {
      run(host, count, task, argument);
    }
  }
};

// A fixed set of threads for hosts that have none (Python, plain C++ programs). `threads` counts the caller, which
// works too; 0 means one for each core. Calls from several threads take turns; a call from within a task, of this or
// another pool, runs on the thread that makes it. After fork() the child's copy has no threads left and runs everything
// on the caller. Throws Error(kRuntime) when the system has no more threads.
class ThreadPool {
 public:
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;
  ParallelFor parallel_for();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace centermask
