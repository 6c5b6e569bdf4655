// The runs and helpers of the process: see team.hpp. Helpers turn for a short while when they have
// nothing to do, so that they are there at the next phase or run, and then sleep.

#include "team.hpp"

#include <condition_variable>
#include <mutex>

namespace siserve {

namespace {

constexpr int MOST_TEAMS = 64;                         // runs with helpers at once
constexpr int LEAST_WITHOUT = 8, MOST_WITHOUT = 1024;  // runs without helpers, after they were late
// Cycles that a helper turns without work: some 1 ms while a run goes on, 0.1 ms between two runs.
constexpr uint64_t IN_A_RUN = 1 << 21, BETWEEN_RUNS = 1 << 18;

}  // namespace

class Company {
 public:
  void allow(int cores) { cores_.store(std::max(1, cores), std::memory_order_relaxed); }

  void occupy(int change) { busy_.fetch_add(change, std::memory_order_relaxed); }

  int share_of_a_run() const {
    int busy = std::max(1, busy_.load(std::memory_order_relaxed));
    return std::clamp(cores_.load(std::memory_order_relaxed) / busy, 1, MOST_MEMBERS);
  }

  Team *begin(bool has_tiles) {
    int wanted = share_of_a_run();
    if (wanted == 1 || goes_without()) return nullptr;
    for (Team &team : teams_) {
      if (team.is_taken_.exchange(true, std::memory_order_acquire)) continue;
      team.began_ = __rdtsc(), team.cycles_waited_ = 0;
      team.has_tiles_.store(has_tiles, std::memory_order_relaxed);
      team.wanted_.store(wanted, std::memory_order_relaxed);
      team.session_.fetch_add(1, std::memory_order_release);
      call_helpers();
      return &team;
    }
    return nullptr;
  }

  void end(Team *team) {
    if (team == nullptr) return;
    judge(__rdtsc() - team->began_, team->cycles_waited_);
    team->session_.fetch_add(1, std::memory_order_release);
    team->is_taken_.store(false, std::memory_order_release);
  }

  [[noreturn]] void help() {
    for (;;) {
      uint64_t calls = calls_.load(std::memory_order_acquire);
      for (Team &team : teams_) join(team);
      uint64_t since = __rdtsc();
      while (calls_.load(std::memory_order_acquire) == calls && __rdtsc() - since < BETWEEN_RUNS)
        _mm_pause();
      std::unique_lock lock(mutex_);
      ++sleeping_;
      woken_.wait(lock, [&] { return calls_.load(std::memory_order_relaxed) != calls; });
      --sleeping_;
    }
  }

 private:
  // Whether this run does without helpers because others waited for theirs.
  bool goes_without() {
    int left = without_.load(std::memory_order_relaxed);
    if (left <= 0) return false;
    without_.store(left - 1, std::memory_order_relaxed);
    return true;
  }

  // A run that waited for a fifth of its time had better been alone; the more of those one after the
  // other, the more runs go without helpers.
  void judge(uint64_t cycles, uint64_t waited) {
    int next = 2 * penalty_.load(std::memory_order_relaxed);
    if (waited * 5 > cycles) without_.store(next, std::memory_order_relaxed);
    penalty_.store(waited * 5 > cycles ? std::min(next, MOST_WITHOUT) : LEAST_WITHOUT / 2,
                   std::memory_order_relaxed);
  }

  void call_helpers() {
    bool any_sleeps;
    {
      std::lock_guard lock(mutex_);
      calls_.fetch_add(1, std::memory_order_release);
      any_sleeps = sleeping_ > 0;
    }
    if (any_sleeps) woken_.notify_all();
  }

  // Take part in a team's run while it wants more members and has work.
  static void join(Team &team) {
    uint32_t session = team.session_.load(std::memory_order_acquire);
    if (session % 2 == 0) return;
    int member = place_in(team);
    if (member == 0) return;
    {
      Tiles tiles(team.has_tiles_.load(std::memory_order_relaxed));
      uint32_t last = 0;
      for (uint64_t since = __rdtsc(); __rdtsc() - since < IN_A_RUN; _mm_pause()) {
        if (team.session_.load(std::memory_order_acquire) != session) break;
        if (member >= team.wanted_.load(std::memory_order_relaxed)) break;
        uint32_t phase = team.phase_.load(std::memory_order_acquire);
        if (phase == last) continue;
        team.work_in(phase, member);
        last = phase, since = __rdtsc();
      }
    }
    team.members_.fetch_and(~(1u << member), std::memory_order_relaxed);
  }

  // Take a free place among the members that are wanted; 0 if there is none.
  static int place_in(Team &team) {
    uint32_t members = team.members_.load(std::memory_order_relaxed);
    for (;;) {
      int member = __builtin_ctz(~members);
      if (member >= team.wanted_.load(std::memory_order_relaxed)) return 0;
      if (team.members_.compare_exchange_weak(members, members | 1u << member)) return member;
    }
  }

  std::atomic<int> cores_{1}, busy_{0}, without_{0}, penalty_{LEAST_WITHOUT / 2};
  std::atomic<uint64_t> calls_{0};
  int sleeping_ = 0;
  std::mutex mutex_;
  std::condition_variable woken_;
  Team teams_[MOST_TEAMS];
};

// It is never destroyed: helpers stay to the end of the process.
static Company &company() {
  static auto &company = *new Company;
  return company;
}

int share_of_a_run() { return company().share_of_a_run(); }

bool Team::take(int member, uint32_t phase, int &at, int &end) {
  uint64_t cursor = cursors_[member].at.load(std::memory_order_acquire);
  for (;;) {
    at = cursor >> 16 & MOST_BLOCKS, end = cursor & MOST_BLOCKS;
    if (cursor >> 32 != phase || at >= end) return false;
    if (cursors_[member].at.compare_exchange_weak(cursor, cursor + (1 << 16),
                                                  std::memory_order_acq_rel))
      return true;
  }
}

void Team::work_in(uint32_t phase, int member) {
  for (int turn = 0; turn < MOST_MEMBERS; ++turn) {
    int part = (member + turn) % MOST_MEMBERS, at, end;
    while (take(part, phase, at, end)) {
      int first = first_of_[part];
      auto [place, next] = in_turn(at - first, end - first, backwards_);
      call_(work_, first + place, first + next);
      done_.fetch_add(1, std::memory_order_release);
    }
  }
}

Running::Running(bool has_tiles) : team(company().begin(has_tiles)) {}
Running::~Running() { company().end(team); }

}  // namespace siserve

// How many threads may compute at once, helpers included.
EXPORTED void siserve_allow(int cores) { siserve::company().allow(cores); }

// One more, or less, of those who run something has work.
EXPORTED void siserve_occupy(int change) { siserve::company().occupy(change); }

// Help whoever runs something, for ever.
EXPORTED void siserve_help() { siserve::company().help(); }
