#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "centermask/error.h"
#include "centermask/parallel.h"

namespace centermask {

namespace {

thread_local bool inside_task = false;

// Operations run in phases one shortly after the other: whoever went to sleep in between would find its caches used by
// others, and waking takes longer than many a phase.
constexpr std::chrono::microseconds kPatience{50};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Looks at `done` until it holds or patience is at an end.
template <class Done>
void spin(Done done) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!done() && std::chrono::steady_clock::now() < end) {
    for (int i = 0; i < 16 && !done(); ++i) pause();
  }
}

}  // namespace

struct ThreadPool::State {
  int threads = 1;
  pid_t owner = 0;
  std::vector<std::thread> workers;
  std::mutex turn;  // held by the caller for the whole of a run

  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable idle;
  ParallelFor::Task task = nullptr;
  void* argument = nullptr;
  std::int64_t count = 0;
  bool open = false;  // workers may still join the present run
  std::atomic<std::int64_t> next{0};
  std::atomic<int> active{0};  // workers inside it; changes under the mutex
  std::atomic<std::uint64_t> generation{0};
  std::atomic<bool> stop{false};
  bool patient = true;  // there is a core for each thread

  void drain(ParallelFor::Task run_task, void* run_argument, std::int64_t run_count) {
    inside_task = true;
    for (std::int64_t i = next.fetch_add(1); i < run_count; i = next.fetch_add(1)) run_task(run_argument, i);
    inside_task = false;
  }

  void work() {
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      if (patient) {
        lock.unlock();
        spin([&] { return stop || generation != seen; });
        lock.lock();
      }
      wake.wait(lock, [&] { return stop || generation != seen; });
      if (stop) return;
      seen = generation;
      if (!open) continue;  // the others were done before this one was awake
      ++active;
      ParallelFor::Task run_task = task;
      void* run_argument = argument;
      std::int64_t run_count = count;
      lock.unlock();
      drain(run_task, run_argument, run_count);
      lock.lock();
      if (--active == 0) idle.notify_one();
    }
  }

  void run(std::int64_t run_count, ParallelFor::Task run_task, void* run_argument) {
    // From within a task, waiting for the turn could mean waiting for oneself.
    if (workers.empty() || inside_task || getpid() != owner) {
      for (std::int64_t i = 0; i < run_count; ++i) run_task(run_argument, i);
      return;
    }
    std::lock_guard<std::mutex> my_turn(turn);
    {
      std::lock_guard<std::mutex> lock(mutex);
      task = run_task;
      argument = run_argument;
      count = run_count;
      next.store(0);
      open = true;
      ++generation;
    }
    wake.notify_all();
    drain(run_task, run_argument, run_count);
    std::unique_lock<std::mutex> lock(mutex);
    open = false;
    if (patient && active != 0) {
      lock.unlock();
      spin([&] { return active == 0; });
      lock.lock();
    }
    idle.wait(lock, [&] { return active == 0; });
  }

  void join() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      stop = true;
    }
    wake.notify_all();
    for (std::thread& worker : workers) worker.join();
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  if (threads <= 0) threads = static_cast<int>(std::thread::hardware_concurrency());
  if (threads < 1) threads = 1;
  state_->threads = threads;
  state_->owner = getpid();
  state_->patient = static_cast<unsigned>(threads) <= std::thread::hardware_concurrency();
  state_->workers.reserve(static_cast<std::size_t>(threads - 1));
  try {
    for (int i = 1; i < threads; ++i) state_->workers.emplace_back([state = state_.get()] { state->work(); });
  } catch (const std::system_error& error) {
    const std::size_t started = state_->workers.size();
    state_->join();
    fail(ErrorKind::kRuntime, "ThreadPool: no more than ", started + 1, " of ", threads,
         " threads could be started: ", error.what());
  }
}

ThreadPool::~ThreadPool() {
  if (getpid() != state_->owner) {
    // The threads belong to the parent; joining or destroying their handles here would hang or abort.
    static_cast<void>(state_.release());
    return;
  }
  state_->join();
}

int ThreadPool::threads() const { return state_->threads; }

ParallelFor ThreadPool::parallel_for() {
  ParallelFor result;
  result.run = [](void* host, std::int64_t count, ParallelFor::Task task, void* argument) {
    static_cast<State*>(host)->run(count, task, argument);
  };
  result.host = state_.get();
  result.threads = state_->threads;
  return result;
}

}  // namespace centermask
