// Threads that sleep between calls and meet at a spinning barrier during one.
#pragma once
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

// The share [first, last) of `count` that part `part` of `parts` gets.
struct Range {
    int first, last;
    Range(int count, int part, int parts)
        : first(static_cast<int>(int64_t(count) * part / parts)),
          last(static_cast<int>(int64_t(count) * (part + 1) / parts)) {}
};

class Barrier {
   public:
    void wait(int threads) {
        if (threads == 1) return;
        unsigned round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round_.load(std::memory_order_acquire) == round; spins++) {
            if (spins > 4096) sched_yield();  // more threads than cores
#if defined(__x86_64__)
            else __builtin_ia32_pause();
#endif
        }
    }

   private:
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> round_{0};
};

class ThreadPool {
   public:
    // Run work(thread) for each thread, this one being number 0; calls from several threads take turns.
    void run(int threads, const std::function<void(int)>& work) {
        std::lock_guard<std::mutex> turn(turn_);
        grow(threads);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            work_ = &work;
            wanted_ = running_ = threads - 1;
            call_++;
        }
        if (threads > 1) wake_.notify_all();
        work(0);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return running_ == 0; });
    }

   private:
    void grow(int threads) {
        while (static_cast<int>(workers_.size()) < threads - 1)
            workers_.emplace_back([this, number = static_cast<int>(workers_.size()) + 1, seen = call_] {
                serve(number, seen);
            });
    }

    void serve(int number, unsigned seen) {
        for (;;) {
            const std::function<void(int)>* work;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return call_ != seen; });
                seen = call_;
                if (number > wanted_) continue;
                work = work_;
            }
            (*work)(number);
            std::lock_guard<std::mutex> lock(mutex_);
            if (--running_ == 0) done_.notify_one();
        }
    }

    std::mutex turn_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    const std::function<void(int)>* work_ = nullptr;
    unsigned call_ = 0;
    int wanted_ = 0, running_ = 0;
};
