// One multiprocessor of compute capability 9.0, played with recorded instructions.
//
// Four schedulers issue at most one instruction a cycle each, from the oldest ready warp: its stall
// has passed, and its barriers (the scoreboard that the assembler wrote into the control bits) and
// its pipe are free. Loads and stores queue for the load/store unit, for the L2 cache and for this
// multiprocessor's share of the memory's bandwidth. A block starts as soon as there is room. An
// estimate: latencies are assumed, nothing was measured.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <vector>

enum Pipe { ALU, FMA, FMA_HEAVY, SPECIAL, MEMORY, OTHER };
enum Kind { PLAIN, LOAD, STORE, FIXED, BARRIER, ATOMIC, FENCE, DELAYED, EXIT, COPY, COMMIT, AWAIT };
enum Level { DRAM, L2, L1 };

struct Instruction {
    int32_t pipe, stall, write_barrier, read_barrier, wait;
    int32_t kind, level;
    int32_t amount;  // bytes of sectors; FIXED, DELAYED: the latency; AWAIT: groups left
    int32_t passes;  // through the load/store unit
};

struct Machine {
    double dram_bytes, l2_bytes;  // a cycle
    double dram_latency, l2_latency, l1_latency, launch, fence, atomic, barrier;  // cycles
};

struct Found {
    double cycles, in_flight, issued, cycles_a_block;
};

struct Warp {
    int block, trace, at = 0;
    double next, barriers[6] = {0}, fence = 0, copied = 0;
    std::deque<double> groups;
    bool done = false, waits = false;
};

struct Block {
    int warps, arrived = 0;
};

struct Simulation {
    const Instruction *traces;
    const int *offsets, *lengths;
    int trace_count, warps, resident, blocks;
    const Machine &machine;
    std::deque<Warp> all;  // a deque: its elements do not move as it grows
    std::vector<Block> launched;
    std::vector<int> scheduler[4];
    double pipe[4][4] = {{0}}, unit = 0, l2 = 0, dram = 0, flight = 0, issued = 0, steady = -1;
    int finished = 0, turn = 0, steady_blocks = 0;

    const Instruction &next_of(const Warp &w) const { return traces[offsets[w.trace] + w.at]; }

    void launch(double now) {
        int block = launched.size();
        launched.push_back({warps});
        for (int k = 0; k < warps; k++) {
            Warp w{block, block % trace_count};
            w.next = now;
            scheduler[turn++ & 3].push_back(all.size());
            all.push_back(w);
        }
    }

    double ready(const Warp &w, int s) const {
        const Instruction &i = next_of(w);
        double at = std::max(w.next, w.fence);
        for (int k = 0; k < 6; k++)
            if (i.wait >> k & 1) at = std::max(at, w.barriers[k]);
        if (i.kind == AWAIT && (int)w.groups.size() > i.amount)
            at = std::max(at, w.groups[w.groups.size() - 1 - i.amount]);
        if (i.pipe <= SPECIAL) at = std::max(at, pipe[s][i.pipe]);
        if (i.pipe == FMA_HEAVY) at = std::max(at, pipe[s][FMA]);
        if (i.pipe == MEMORY) at = std::max(at, unit - 16.0);
        return at;
    }

    void occupy(int pipe_, int s, double now) {
        static const double cycles[] = {2, 1, 2, 8};
        if (pipe_ > SPECIAL) return;
        pipe[s][pipe_] = now + cycles[pipe_];
        if (pipe_ == FMA_HEAVY) pipe[s][FMA] = now + 1;
    }

    // The time when the data have passed the caches and the memory.
    double transfer(const Instruction &i, double from, double now) {
        if (i.level == L1) return from + machine.l1_latency;
        double begin = std::max(from, l2);
        l2 = begin + i.amount / machine.l2_bytes;
        if (i.level == L2) return l2 + machine.l2_latency;
        dram = std::max(begin, dram) + i.amount / machine.dram_bytes;
        double done = dram + machine.dram_latency;
        if (i.kind != STORE) flight += i.amount * (done - now);
        return done;
    }

    void issue(Warp &w, int s, double now) {
        const Instruction &i = next_of(w);
        issued++;
        occupy(i.pipe, s, now);
        double done = now;
        if (i.pipe == MEMORY) done = unit = std::max(unit, now) + i.passes;
        w.fence = 0;
        switch (i.kind) {
            case LOAD: done = transfer(i, done, now); break;
            case COPY: w.copied = std::max(w.copied, done = transfer(i, done, now)); break;
            case STORE:
                if (i.level != L1) transfer(i, done, now);
                done += i.read_barrier < 6 ? 12 : 0;
                break;
            case FIXED: done += i.amount; break;
            case DELAYED: done = now + i.amount; break;
            case ATOMIC: done = std::max(done, now) + machine.atomic; break;
            case FENCE: w.fence = now + machine.fence; break;
            case COMMIT: w.groups.push_back(std::max(w.copied, now)); break;
        }
        if (i.write_barrier < 6)
            w.barriers[i.write_barrier] = std::max(w.barriers[i.write_barrier], done);
        if (i.read_barrier < 6) {
            bool memory = i.kind == LOAD || i.kind == STORE || i.kind == FIXED || i.kind == COPY;
            double read = now + (memory ? std::max(12.0, unit - now) : 8);
            w.barriers[i.read_barrier] = std::max(w.barriers[i.read_barrier], read);
        }
        w.next = now + std::max(1, i.stall);
        if (i.kind == EXIT || w.at + 1 >= lengths[w.trace])
            leave(w, now);
        else if (w.at++, i.kind == BARRIER)
            arrive(w, now);
    }

    void arrive(Warp &w, double now) {
        w.waits = true;
        Block &block = launched[w.block];
        if (++block.arrived < block.warps) return;
        block.arrived = 0;
        for (auto &ids : scheduler)
            for (int id : ids)
                if (all[id].block == w.block && all[id].waits) {
                    all[id].waits = false;
                    all[id].next = std::max(all[id].next, now + machine.barrier);
                }
    }

    void leave(Warp &w, double now) {
        w.done = true;
        if (--launched[w.block].warps) return;
        if (++finished == resident) steady = now, steady_blocks = finished;
        if ((int)launched.size() < blocks) launch(now + machine.launch);
    }

    bool run(Found &found) {
        for (int k = 0; k < resident && (int)launched.size() < blocks; k++) launch(k * 20.0);
        double now = 0;
        while (finished < blocks) {
            double soonest = 1e300;
            bool any = false;
            for (int s = 0; s < 4; s++) {
                int chosen = -1;
                for (int id : scheduler[s]) {
                    if (all[id].waits) continue;
                    double at = ready(all[id], s);
                    if (at > now)
                        soonest = std::min(soonest, at);
                    else if (chosen < 0)
                        chosen = id;
                }
                if (chosen < 0) continue;
                any = true;
                issue(all[chosen], s, now);
                auto &ids = scheduler[s];
                if (all[chosen].done) ids.erase(std::find(ids.begin(), ids.end(), chosen));
            }
            if (!any && soonest > 1e299) return false;  // all wait for a barrier
            now = any ? now + 1 : std::ceil(soonest);
        }
        double end = std::max({now, l2, dram});
        bool several = finished > steady_blocks && steady > 0;
        found.cycles = end;
        found.in_flight = flight / end;
        found.issued = issued / (4 * end);
        found.cycles_a_block = several ? (end - steady) / (finished - steady_blocks) : 0;
        return true;
    }
};

extern "C" int simulate(const Instruction *traces, const int *offsets, const int *lengths,
                        int trace_count, int warps, int resident, int blocks,
                        const Machine *machine, Found *found) {
    Simulation simulation{traces, offsets, lengths, trace_count, warps, resident, blocks, *machine};
    return simulation.run(*found) ? 0 : 1;
}
