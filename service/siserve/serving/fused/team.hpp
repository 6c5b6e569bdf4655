// Threads that take part in a run while there are cores for them.
//
// A run's work comes in phases of blocks, whose results do not depend on who computes them. In each
// phase every member of the run's team has a part of the blocks, the same one each time, so that
// its weights stay in the cache of its core; who is done with its part takes what is left of the
// others'. So nobody waits for a helper that has not come. For one whose core is taken away while it
// is at a block everybody does, so runs that waited for long are followed by some without helpers.

#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "products.hpp"

namespace siserve {

constexpr int MOST_MEMBERS = 8;             // of a team
constexpr int MOST_BLOCKS = (1 << 16) - 1;  // of a phase
constexpr int PATIENCE = 1 << 12;           // turns before a core is offered to others

// Threads that each run may have now.
int share_of_a_run();

struct alignas(64) Cursor {
  std::atomic<uint64_t> at{0};  // 32 bits of the phase, 16 of the next block, 16 of the end
};

class Team {
 public:
  // Have the blocks 0 to count - 1 done: work(number, next), where `next` is the block that the same
  // thread is likely to do after it, or the block itself. Backwards each part is done from its end.
  template <typename Work>
  void share(int count, bool backwards, const Work &work) {
    int members = share_of_a_run(), parts = std::min(members, count);
    wanted_.store(members, std::memory_order_relaxed);
    if (parts <= 1 || count > MOST_BLOCKS) return do_alone(count, backwards, work);
    call_ = [](const void *told, int number, int next) {
      (*static_cast<const Work *>(told))(number, next);
    };
    work_ = &work, backwards_ = backwards;
    done_.store(0, std::memory_order_relaxed);
    uint32_t phase = phase_.load(std::memory_order_relaxed) + 1;
    for (int member = 0; member < MOST_MEMBERS; ++member) {
      int first = count * std::min(member, parts) / parts;
      int end = count * std::min(member + 1, parts) / parts;
      first_of_[member] = first;
      cursors_[member].at.store((uint64_t)phase << 32 | (uint64_t)first << 16 | (uint64_t)end,
                                std::memory_order_release);
    }
    phase_.store(phase, std::memory_order_release);
    work_in(phase, 0);
    uint64_t since = __rdtsc();
    for (int turns = 0; done_.load(std::memory_order_acquire) < count; ++turns)
      turns < PATIENCE ? _mm_pause() : (void)sched_yield();
    cycles_waited_ += __rdtsc() - since;
  }

  // Do blocks one after the other.
  template <typename Work>
  static void do_alone(int count, bool backwards, const Work &work) {
    for (int at = 0; at < count; ++at) {
      auto [number, next] = in_turn(at, count, backwards);
      work(number, next);
    }
  }

 private:
  friend class Company;

  // Take a block of a member's part in a phase; false if there is none.
  bool take(int member, uint32_t phase, int &at, int &end);

  // Do blocks of a phase until there are none, first those of the own part.
  void work_in(uint32_t phase, int member);

  std::atomic<bool> is_taken_{false};
  std::atomic<uint32_t> session_{0};  // odd while a run has the team
  std::atomic<uint32_t> phase_{0};
  std::atomic<uint32_t> members_{1};  // a bit each
  std::atomic<int> wanted_{1};
  std::atomic<bool> has_tiles_{false};
  alignas(64) std::atomic<int> done_{0};
  Cursor cursors_[MOST_MEMBERS];
  // What a phase is about; it may be read once a block of it is taken, for until that is done there
  // is no other phase.
  void (*call_)(const void *work, int number, int next) = nullptr;
  const void *work_ = nullptr;
  bool backwards_ = false;
  int first_of_[MOST_MEMBERS] = {};
  uint64_t began_ = 0, cycles_waited_ = 0;
};

// A run, while it lives, and its team, unless it goes without helpers.
class Running {
 public:
  explicit Running(bool has_tiles);
  Running(const Running &) = delete;
  ~Running();

  Team *const team;
};

// Have the blocks 0 to count - 1 done by a team, or, where there is none, by this thread alone.
template <typename Work>
void share(Team *team, int count, bool backwards, const Work &work) {
  if (team == nullptr) return Team::do_alone(count, backwards, work);
  team->share(count, backwards, work);
}

}  // namespace siserve
