// What is known of logits in fp32 by blocks of the vocabulary: token sampling needs little else. One
// pass over them, on every processor.
//
// Axes: B rows, V vocabulary, Y blocks of it.
#include <cmath>

#include "panels.h"

using namespace tinkersmith_panels;

namespace {

constexpr i64 ALONE = 1 << 19;  // logits that one thread looks through sooner than several

static_assert(VOCABULARY_BLOCK % LANES == 0);

// The highest of `count` logits, a multiple of LANES, its place, the first of equals, and the sum of
// exp(logit - highest).
void look(const float* logits, i64 count, float& highest, int& place, float& sum) {
  Vector most = load(logits);
  for (i64 i = LANES; i < count; i += LANES) {
    const Vector more = load(logits + i);
    most = more > most ? more : most;
  }
  highest = most[0];
  for (int lane = 1; lane < LANES; ++lane) highest = std::max(highest, most[lane]);
  place = 0;
  while (place < count - 1 && logits[place] != highest) ++place;
  const Vector shift = all(highest == -INFINITY ? 0.0f : highest);
  Vector sums[4] = {};
  for (i64 i = 0; i < count; i += LANES)
    sums[i / LANES % 4] += exponential(load(logits + i) - shift);
  const Vector together = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  sum = 0;
  for (int lane = 0; lane < LANES; ++lane) sum += together[lane];
}

}  // namespace

extern "C" void tinkersmith_look_through_logits_float32(i64 rows, i64 vocabulary,
                                                        const float* logits, float* highest,
                                                        int* most_likely, float* sums) {
  const i64 blocks = (vocabulary + VOCABULARY_BLOCK - 1) / VOCABULARY_BLOCK;
#pragma omp parallel for if (rows * vocabulary > ALONE)
  for (i64 task = 0; task < rows * blocks; ++task) {
    const i64 first = task % blocks * VOCABULARY_BLOCK,
              count = std::min(VOCABULARY_BLOCK, vocabulary - first);
    const float* from = logits + task / blocks * vocabulary + first;
    alignas(64) float end[VOCABULARY_BLOCK];
    const i64 width = round_up(count, LANES);
    if (width != count) {  // the vocabulary's end
      std::copy(from, from + count, end);
      std::fill(end + count, end + width, -INFINITY);
      from = end;
    }
    int place;
    look(from, width, highest[task], place, sums[task]);
    most_likely[task] = static_cast<int>(first) + place;
  }
}
