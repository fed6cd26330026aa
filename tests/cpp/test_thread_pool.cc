#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "centermask/parallel.h"
#include "check.h"

namespace {

using centermask::ParallelFor;
using centermask::ThreadPool;

bool runs_each_index_once(const ParallelFor& parallel_for, int count) {
  std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
  parallel_for(count, [&](std::int64_t i) { ++seen[static_cast<std::size_t>(i)]; });
  for (const auto& n : seen) {
    if (n != 1) return false;
  }
  return true;
}

}  // namespace

int main() {
  CHECK(runs_each_index_once({}, 7));
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (int count : {0, 1, 2, 1000}) CHECK(runs_each_index_once(pool.parallel_for(), count));
  }

  ThreadPool pool(3);
  // Several callers at once take turns.
  std::atomic<bool> good{true};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      for (int k = 0; k < 50; ++k) {
        if (!runs_each_index_once(pool.parallel_for(), 100)) good = false;
      }
    });
  }
  for (auto& caller : callers) caller.join();
  CHECK(good);

  // From within a task, this pool and others run on the thread that asks (and nobody waits for himself).
  ThreadPool other(2);
  good = true;
  pool.parallel_for()(20, [&](std::int64_t) {
    const std::thread::id here = std::this_thread::get_id();
    for (const ParallelFor& inner : {pool.parallel_for(), other.parallel_for()}) {
      inner(5, [&](std::int64_t) {
        if (std::this_thread::get_id() != here) good = false;
      });
      if (!runs_each_index_once(inner, 100)) good = false;
    }
  });
  CHECK(good);
  CHECK(runs_each_index_once(pool.parallel_for(), 100));

  // More threads than there can be: an error, and the threads that were started end.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  const pid_t limited = fork();
  if (limited == 0) {
    const rlimit memory{std::size_t{1} << 29, std::size_t{1} << 29};  // for some dozens of stacks
    setrlimit(RLIMIT_AS, &memory);
    if (mmap(nullptr, 2 * memory.rlim_cur, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) {
      _exit(0);  // nothing is limited: so does qemu-user
    }
    CHECK_FAILS(ThreadPool(10000), centermask::ErrorKind::kRuntime, "of 10000 threads could be started");
    CHECK(runs_each_index_once(ThreadPool(2).parallel_for(), 100));
    std::fflush(stdout);
    _exit(check_failures() == 0 ? 0 : 1);
  }
  int limited_status = -1;
  CHECK(waitpid(limited, &limited_status, 0) == limited);
  CHECK(WIFEXITED(limited_status) && WEXITSTATUS(limited_status) == 0);
#endif

  // A forked child has no worker threads, and still does all the work.
  const pid_t child = fork();
  if (child == 0) {
    ThreadPool own(2);
    const bool fine = runs_each_index_once(pool.parallel_for(), 100) && runs_each_index_once(own.parallel_for(), 100);
    _exit(fine ? 0 : 1);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return check_result();
}
