#include "model_info.h"

#include <stdexcept>

namespace example {

namespace {

void append_utf8(std::string& text, unsigned code) {
  if (code < 0x80) {
    text += static_cast<char>(code);
  } else if (code < 0x800) {
    text += static_cast<char>(0xC0 | code >> 6);
    text += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    text += static_cast<char>(0xE0 | code >> 12);
    text += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    text += static_cast<char>(0x80 | (code & 0x3F));
  }
}

// A JSON list of strings, or of numbers (which are given as their text): all that the metadata has.
std::vector<std::string> json_list(const std::string& text) {
  std::size_t at = 0;
  auto peek = [&]() -> char {
    while (at < text.size() && (text[at] == ' ' || text[at] == '\n' || text[at] == '\t')) ++at;
    if (at == text.size()) throw std::runtime_error("unfinished JSON list");
    return text[at];
  };
  auto string = [&] {
    std::string value;
    for (++at; at < text.size() && text[at] != '"'; ++at) {
      if (text[at] != '\\') {
        value += text[at];
        continue;
      }
      const char escape = ++at < text.size() ? text[at] : ' ';
      if (escape == 'u' && at + 4 < text.size()) {
        append_utf8(value, static_cast<unsigned>(std::stoul(text.substr(at + 1, 4), nullptr, 16)));
        at += 4;
      } else {
        value += escape == 'n' ? '\n' : escape == 't' ? '\t' : escape;
      }
    }
    if (at++ >= text.size()) throw std::runtime_error("unfinished JSON string");
    return value;
  };
  if (peek() != '[') throw std::runtime_error("not a JSON list");
  ++at;
  std::vector<std::string> values;
  while (peek() != ']') {
    if (!values.empty()) {
      if (peek() != ',') throw std::runtime_error("no comma in a JSON list");
      ++at;
    }
    if (peek() == '"') {
      values.push_back(string());
    } else {
      const std::size_t end = text.find_first_of(",]", at);
      if (end == std::string::npos) throw std::runtime_error("unfinished JSON list");
      values.push_back(text.substr(at, end - at));
      at = end;
    }
  }
  return values;
}

double number(const std::string& text) {
  std::size_t used = 0;
  const double value = std::stod(text, &used);
  if (used != text.size()) throw std::runtime_error("not a number");
  return value;
}

std::int64_t positive(const std::string& text) {
  const double value = number(text);
  if (!(value >= 1 && value <= 1e6)) throw std::runtime_error("not a positive number");
  return static_cast<std::int64_t>(value);
}

std::array<double, 3> three(const std::string& text) {
  const auto values = json_list(text);
  if (values.size() != 3) throw std::runtime_error("not three numbers");
  return {number(values[0]), number(values[1]), number(values[2])};
}

}  // namespace

ModelInfo read_model_info(const std::function<std::optional<std::string>(const std::string&)>& lookup) {
  // Calls read(text) on a key's text.
  auto with = [&](const std::string& name, auto&& read) {
    const std::string key = "centermask." + name;
    const auto text = lookup(key);
    if (!text) throw std::runtime_error("not a centermask model: metadata '" + key + "' is missing");
    try {
      read(*text);
    } catch (const std::exception& error) {
      throw std::runtime_error("metadata '" + key + "' cannot be read: " + *text + " (" + error.what() + ")");
    }
  };
  ModelInfo info;
  with("version", [](const std::string& text) {
    if (number(text) > 1) throw std::runtime_error("a newer contract than this program's");
  });
  with("model", [&](const std::string& text) { info.model = text; });
  with("classes", [&](const std::string& text) { info.classes = json_list(text); });
  with("category_ids", [&](const std::string& text) {
    for (const auto& id : json_list(text)) info.category_ids.push_back(std::stoll(id));
    if (info.category_ids.size() != info.classes.size()) throw std::runtime_error("one for each class expected");
  });
  with("color", [&](const std::string& text) {
    if (text != "rgb" && text != "bgr") throw std::runtime_error("rgb or bgr expected");
    info.color = text;
  });
  with("mean", [&](const std::string& text) { info.mean = three(text); });
  with("std", [&](const std::string& text) { info.std = three(text); });
  with("size", [&](const std::string& text) { info.size = positive(text); });
  with("size_policy", [&](const std::string& text) { info.size_policy = text; });
  with("stride", [&](const std::string& text) { info.stride = positive(text); });
  with("top_k", [&](const std::string& text) { info.top_k = positive(text); });
  with("score_threshold", [&](const std::string& text) { info.score_threshold = number(text); });
  with("max_overlap", [&](const std::string& text) { info.max_overlap = number(text); });
  with("mask_head", [&](const std::string& text) {
    if (text != "dynamic" && text != "shape" && text != "none") throw std::runtime_error("unknown mask head");
    info.mask_head = text;
  });
  with("box_margin", [&](const std::string& text) { info.box_margin = number(text); });
  info.class_agnostic = lookup("centermask.class_agnostic").value_or("false") == "true";
  return info;
}

}  // namespace example
