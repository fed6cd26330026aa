// Pictures in, masks out: a model of `centermask export`, ONNX Runtime by its C API, and this library for the rest.
//
//   centermask_segment model.onnx photo.ppm ... --coco found.json --draw drawn/
//
// network.cc runs the model, prepare.cc makes its input, instances.cc its output into masks.
#include <centermask/error.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "image_io.h"
#include "instances.h"
#include "network.h"
#include "prepare.h"

#ifndef CENTERMASK_ORT_LIBRARY
#define CENTERMASK_ORT_LIBRARY ""
#endif
#ifndef ONNXRUNTIME_LIBRARY
#define ONNXRUNTIME_LIBRARY "libonnxruntime.so.1"
#endif

namespace {

struct Settings {
  std::string model, coco, draw, runtime = ONNXRUNTIME_LIBRARY;
  std::vector<std::string> pictures;
  double score = -1;
  example::NetworkOptions network;
};

void usage(std::FILE* to) {
  std::fprintf(to,
               "usage: centermask_segment MODEL.onnx PICTURE... [options]\n"
               "  pictures: %s\n"
               "  --coco FILE         write all instances as COCO JSON, masks as run lengths\n"
               "  --draw FOLDER       write drawn pictures there, as PPM\n"
               "  --score S           least score, 0..1 (default: the model's own)\n"
               "  --threads N         CPU threads (default: all cores)\n"
               "  --op-library FILE   libcentermask_ort.so, for `fused` models (default: %s)\n"
               "  --onnxruntime FILE  libonnxruntime.so (default: %s)\n"
               "  --cuda              run the network on the GPU\n",
               example::image_formats(), *CENTERMASK_ORT_LIBRARY != 0 ? CENTERMASK_ORT_LIBRARY : "none",
               ONNXRUNTIME_LIBRARY);
}

Settings parse(int count, char** arguments) {
  Settings settings;
  settings.network.op_library = CENTERMASK_ORT_LIBRARY;
  for (int i = 1; i < count; ++i) {
    const std::string word = arguments[i];
    auto value = [&]() -> std::string {
      if (i + 1 >= count) throw std::invalid_argument(word + " needs a value");
      return arguments[++i];
    };
    auto number = [&] {
      const std::string text = value();
      char* end = nullptr;
      const double parsed = std::strtod(text.c_str(), &end);
      if (text.empty() || *end != 0) throw std::invalid_argument(word + " needs a number, got " + text);
      return parsed;
    };
    if (word == "--coco") {
      settings.coco = value();
    } else if (word == "--draw") {
      settings.draw = value();
    } else if (word == "--score") {
      settings.score = number();
      if (!(settings.score >= 0 && settings.score <= 1)) throw std::invalid_argument("--score must be in 0..1");
    } else if (word == "--threads") {
      const double threads = number();
      if (!(threads >= 1 && threads <= 1024)) throw std::invalid_argument("--threads must be in 1..1024");
      settings.network.threads = static_cast<int>(threads);
    } else if (word == "--op-library") {
      settings.network.op_library = value();
    } else if (word == "--onnxruntime") {
      settings.runtime = value();
    } else if (word == "--cuda") {
      settings.network.cuda = true;
    } else if (word.rfind("--", 0) == 0) {
      throw std::invalid_argument("unknown option " + word);
    } else if (settings.model.empty()) {
      settings.model = word;
    } else {
      settings.pictures.push_back(word);
    }
  }
  if (settings.pictures.empty()) throw std::invalid_argument("a model and at least one picture are needed");
  return settings;
}

// The picture's name without folders and ending, as .ppm.
std::string drawn_name(const std::string& folder, const std::string& picture) {
  const std::size_t slash = picture.find_last_of('/');
  std::string name = slash == std::string::npos ? picture : picture.substr(slash + 1);
  name = name.substr(0, name.find_last_of('.'));
  return folder + "/" + name + ".ppm";
}

int run(const Settings& settings) {
  std::printf("ONNX Runtime %s\n", example::load_runtime(settings.runtime).c_str());
  const example::Network network(settings.model, settings.network);
  const example::ModelInfo& info = network.info();
  const double score = settings.score < 0 ? info.score_threshold : settings.score;
  centermask::ThreadPool pool(settings.network.threads);
  example::CocoFile coco(info);
  std::vector<float> storage;
  int failed = 0;
  for (const std::string& path : settings.pictures) {
    try {
      example::Image image = example::read_image(path);
      const auto start = std::chrono::steady_clock::now();
      const example::NetworkInput input = example::prepare(image, info, pool.parallel_for(), storage);
      const auto instances = example::to_instances(network.run(input), input, info, score, pool.parallel_for());
      const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
      std::printf("%s: %zu instances in %.1f ms\n", path.c_str(), instances.size(), took.count());
      for (const auto& found : instances) {
        std::printf("  %-20s %.3f  %7.1f %7.1f %7.1f %7.1f\n",
                    info.classes[static_cast<std::size_t>(found.label)].c_str(), static_cast<double>(found.score),
                    static_cast<double>(found.box[0]), static_cast<double>(found.box[1]),
                    static_cast<double>(found.box[2]), static_cast<double>(found.box[3]));
      }
      coco.add(path, image.height, image.width, instances);
      if (!settings.draw.empty()) {
        example::draw(image, instances);
        example::write_ppm(drawn_name(settings.draw, path), image);
      }
    } catch (const std::exception& error) {  // the other pictures are worth trying
      std::fprintf(stderr, "error: %s\n", error.what());
      ++failed;
    }
  }
  if (!settings.coco.empty()) coco.write(settings.coco);
  return failed > 0 ? 1 : 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 2 && std::string(arguments[1]) == "--help") {
    usage(stdout);
    return 0;
  }
  try {
    return run(parse(count, arguments));
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    usage(stderr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
  }
  return 2;
}
