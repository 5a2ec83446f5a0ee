// exp(x) = 2^(whole + rest), where whole + rest = x log2(e): the numbers that all sources share.
// Training and decoding take different functions; with other digits in one of them, their
// log-probabilities in bf16 would drift apart.
#pragma once

constexpr float LOG2_E = 1.44269504f;

// 2^rest for rest between -1/2 and 1/2: the best polynomial of its degree that is 1 at 0. Its
// relative error is 2e-7. The highest power's factor, then the others in order: a macro, as g++
// schedules loops over literals and over a named array differently.
constexpr float EXP2_FIRST = 0.00132647272f;
#define EXP2_REST {0.00967151281f, 0.0555073374f, 0.240222421f, 0.693146978f, 1.0f}
