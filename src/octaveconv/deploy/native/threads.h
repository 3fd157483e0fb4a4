// Threads that sleep between calls, and during one meet at a barrier: it spins a while, then it sleeps.
#pragma once
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

// The share [first, last) of `count` that part `part` of `parts` gets.
struct Range {
    int first, last;
    Range(int count, int part, int parts)
        : first(static_cast<int>(int64_t(count) * part / parts)),
          last(static_cast<int>(int64_t(count) * (part + 1) / parts)) {}
};

// How many cores this thread may run on.
inline int cores() {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
    return static_cast<int>(std::thread::hardware_concurrency());
}

class Barrier {
   public:
    // `threads` meet here. Where they are more than the cores, spinning would only keep the others from running.
    void reset(int threads, bool crowded) {
        threads_ = threads;
        spins_ = crowded ? 0 : SPINS;
    }

    void wait() {
        if (threads_ == 1) return;
        unsigned round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1);  // in one order with `sleepers_`: either the sleeper sees it, or we see the sleeper
            if (sleepers_.load() == 0) return;
            std::lock_guard<std::mutex> lock(mutex_);
            woken_.notify_all();
            return;
        }
        for (int i = 0; i < spins_; i++) {
            if (round_.load(std::memory_order_acquire) != round) return;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
        for (int i = 0; i < YIELDS; i++) {
            if (round_.load(std::memory_order_acquire) != round) return;
            sched_yield();
        }
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_++;
        woken_.wait(lock, [&] { return round_.load() != round; });
        sleepers_--;
    }

   private:
    static constexpr int SPINS = 4096;  // about 0.1 ms
    static constexpr int YIELDS = 256;  // another 0.1 ms, if nobody else wants the core

    int threads_ = 1, spins_ = SPINS;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> round_{0};
    std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable woken_;
};

// The threads of one call. Each keeps it alive until it has left the last barrier.
struct Team {
    int threads;
    std::function<void(int thread, Team&)> work;
    Barrier barrier;
};

// A thread that waits for a team to join.
class Worker {
   public:
    Worker() : thread_([this] { serve(); }) {}

    void join(std::shared_ptr<Team> team, int number) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            team_ = std::move(team);
            number_ = number;
        }
        wake_.notify_one();
    }

   private:
    void serve() {
        for (;;) {
            std::shared_ptr<Team> team;
            int number;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [this] { return team_ != nullptr; });
                team = std::move(team_);
                team_ = nullptr;
                number = number_;
            }
            team->work(number, *team);
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::shared_ptr<Team> team_;
    int number_ = 0;
    std::thread thread_;  // the last member: it uses the others
};

// Calls from several threads run at once: each takes workers of its own, who are made when there are too few.
class ThreadPool {
   public:
    // Run work(thread, team) in `threads` threads, this one being number 0, or in fewer if the system has no more. The
    // work must end with the barrier.
    void run(int threads, std::function<void(int, Team&)> work) {
        std::vector<Worker*> workers = take(threads - 1);
        threads = static_cast<int>(workers.size()) + 1;
        auto team = std::make_shared<Team>();
        team->threads = threads;
        team->work = std::move(work);
        running_ += threads;
        team->barrier.reset(threads, threads > 1 && running_ > cores());
        for (int i = 1; i < threads; i++) workers[i - 1]->join(team, i);
        team->work(0, *team);
        running_ -= threads;
        give_back(workers);
    }

   private:
    std::vector<Worker*> take(int count) {
        std::vector<Worker*> taken;
        if (count == 0) return taken;
        std::lock_guard<std::mutex> lock(mutex_);
        while (static_cast<int>(taken.size()) < count && !idle_.empty()) {
            taken.push_back(idle_.back());
            idle_.pop_back();
        }
        try {
            while (static_cast<int>(taken.size()) < count) taken.push_back(new Worker);  // never deleted
        } catch (const std::system_error&) {
        }
        return taken;
    }

    void give_back(const std::vector<Worker*>& workers) {
        if (workers.empty()) return;
        std::lock_guard<std::mutex> lock(mutex_);
        idle_.insert(idle_.end(), workers.rbegin(), workers.rend());
    }

    std::mutex mutex_;
    std::vector<Worker*> idle_;
    std::atomic<int> running_{0};
};

// The pool of this process. A forked child has none of its parent's threads: it gets a pool of its own.
inline ThreadPool& thread_pool() {
    static ThreadPool* pool = nullptr;  // never deleted: its threads may outlive main
    static const int registered = [] {
        pool = new ThreadPool;
        return pthread_atfork(nullptr, nullptr, [] { pool = new ThreadPool; });
    }();
    (void)registered;
    return *pool;
}
