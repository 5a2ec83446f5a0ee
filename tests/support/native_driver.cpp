// Calls the C++ functions that every processor has, on numbers that are the same everywhere, and
// writes the results in fp32 to one file and those in bf16, as fp32, to another.
#include <bit>
#include <cstdio>
#include <vector>

#include "interface.h"

namespace {

std::FILE *exact, *rounded;

class Numbers {  // the same on every processor, between -1 and 1
 public:
  std::vector<float> next(i64 count, float scale = 1) {
    std::vector<float> numbers(count);
    for (float& number : numbers) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      number = scale * (static_cast<float>(state_ >> 40) / static_cast<float>(1 << 23) - 1);
    }
    return numbers;
  }
  std::vector<bf16> next_bf16(i64 count, float scale = 1) {
    std::vector<bf16> narrow;
    for (const float number : next(count, scale))
      narrow.push_back(static_cast<bf16>(std::bit_cast<uint32_t>(number) >> 16));
    return narrow;
  }

 private:
  uint64_t state_ = 7;
};

void write(const std::vector<float>& numbers) {
  std::fwrite(numbers.data(), sizeof(float), numbers.size(), exact);
}

void write(const std::vector<bf16>& numbers) {
  for (const bf16 number : numbers) {
    const float wide = std::bit_cast<float>(static_cast<uint32_t>(number) << 16);
    std::fwrite(&wide, sizeof wide, 1, rounded);
  }
}

i64 round_up(i64 count) { return (count + FLOAT_PANEL - 1) / FLOAT_PANEL * FLOAT_PANEL; }

// Decodes `steps` tokens of `sequences` sequences, some of which have adapters.
void decode(Numbers& source, i64 hidden, i64 inner, i64 sequences, i64 steps) {
  constexpr i64 kv_heads = 2, per_key = 3, size = 20, layers = 2;
  constexpr i64 heads = kv_heads * per_key * size, kv_width = kv_heads * size;
  std::vector<std::vector<float>> kept;
  std::vector<std::vector<bf16>> narrow;
  std::vector<std::vector<RowUpdate>> updates;
  auto keep = [&](i64 count, float scale) {
    kept.push_back(source.next(count, scale));
    return kept.back().data();
  };
  auto linear = [&](std::vector<i64> outputs, i64 inputs, bool wide) {
    i64 width = 0;
    for (const i64 count : outputs) width += count;
    Float32Linear one{};
    if (wide) {
      one.weight = keep(width * inputs, 0.3f);
      one.bias = keep(width, 0.3f);
    } else {
      narrow.push_back(source.next_bf16(width * inputs, 0.3f));
      one.narrow_weight = narrow.back().data();
    }
    for (size_t i = 0; i < outputs.size(); ++i) one.outputs[i] = outputs[i];
    one.inputs = inputs;
    // The first adapter has three rows and trains all joined layers, the next one only the first.
    const i64 trained[] = {static_cast<i64>(outputs.size()), 1};
    const i64 ranks[] = {4, 6}, firsts[] = {1, 4}, rows[] = {3, sequences - 5};
    std::vector<RowUpdate> groups;
    for (int group = 0; group < 2; ++group) {
      RowUpdate update{firsts[group], rows[group], nullptr, trained[group], ranks[group],
                       {},            {},          {}};
      update.a = keep(update.layers * update.rank * inputs, 0.2f);
      i64 start = 0;
      for (i64 i = 0; i < update.layers; ++i) {
        update.b[i] = keep(update.rank * outputs[i], 0.2f);
        update.columns[i] = start;
        update.outputs[i] = outputs[i];
        start += outputs[i];
      }
      groups.push_back(update);
    }
    updates.push_back(groups);
    one.groups = 2;
    one.updates = updates.back().data();
    return one;
  };
  std::vector<Float32Layer> model;
  for (i64 i = 0; i < layers; ++i)
    model.push_back({keep(hidden, 1), i ? keep(size, 1) : nullptr, i ? keep(size, 1) : nullptr,
                     keep(hidden, 1), linear({heads, kv_width, kv_width}, hidden, i == 0),
                     linear({hidden}, heads, i == 0), linear({inner, inner}, hidden, i == 0),
                     linear({hidden}, inner, i == 0)});
  const i64 capacity = round_up(steps + 1), key_step = kv_heads * capacity * size,
            value_step = kv_heads * capacity * round_up(size);
  std::vector<std::vector<float>> keys(sequences), values(sequences);
  std::vector<float*> key_places, value_places;
  for (i64 i = 0; i < sequences; ++i) {
    keys[i].resize(layers * key_step), values[i].resize(layers * value_step);
    key_places.push_back(keys[i].data()), value_places.push_back(values[i].data());
  }
  const std::vector<i64> capacities(sequences, capacity), key_steps(sequences, key_step),
      value_steps(sequences, value_step);
  for (i64 step = 0; step < steps; ++step) {
    const std::vector<i64> lengths(sequences, step);
    const std::vector<float> cosine = source.next(sequences * size / 2),
                             sine = source.next(sequences * size / 2);
    std::vector<float> x = source.next(sequences * hidden);
    tinkersmith_decode_float32(sequences, hidden, kv_heads, per_key, size, layers, model.data(),
                               1e-6f, 0.3f, cosine.data(), sine.data(), size / 2, lengths.data(),
                               capacities.data(), key_places.data(), key_steps.data(),
                               value_places.data(), value_steps.data(), x.data());
    write(x);
  }
}

void multiply(Numbers& source, i64 rows, i64 outputs, i64 inputs) {
  const std::vector<float> x = source.next(rows * inputs);
  std::vector<float> y(rows * outputs);
  tinkersmith_small_batch_product_float32(rows, outputs, inputs, x.data(),
                                          source.next(outputs * inputs).data(), y.data(), outputs);
  write(y);
  tinkersmith_small_batch_product_bfloat16(rows, outputs, inputs, x.data(),
                                           source.next_bf16(outputs * inputs).data(), y.data(),
                                           outputs);
  write(y);
}

void add_updates(Numbers& source, i64 inputs, i64 outputs, i64 rank, i64 rows) {
  const std::vector<float> x = source.next(rows * inputs), a = source.next(rank * inputs),
                           b = source.next(rank * outputs);
  std::vector<float> low(rows * rank), y = source.next(rows * outputs);
  const RowUpdate update{0, rows, a.data(), 1, rank, {b.data()}, {0}, {outputs}};
  tinkersmith_add_row_updates(1, &update, inputs, x.data(), low.data(), rank, y.data(), outputs);
  write(y);
}

void look_through_logits(Numbers& source, i64 rows, i64 vocabulary) {
  const std::vector<float> logits = source.next(rows * vocabulary, 8);
  const i64 blocks = (vocabulary + VOCABULARY_BLOCK - 1) / VOCABULARY_BLOCK;
  std::vector<float> highest(rows * blocks), sums(rows * blocks);
  std::vector<int> most_likely(rows * blocks);
  tinkersmith_look_through_logits_float32(rows, vocabulary, logits.data(), highest.data(),
                                          most_likely.data(), sums.data());
  write(highest);
  write(sums);
  write(std::vector<float>(most_likely.begin(), most_likely.end()));
}

// The element-wise functions of one type of numbers.
template <class Number, class Take, class Norm, class NormBack, class Swiglu, class SwigluBack,
          class Powers>
void elementwise(Take take, Norm norm, NormBack norm_back, Swiglu swiglu, SwigluBack swiglu_back,
                 Powers powers_of, Numbers& source) {
  constexpr i64 rows = 5, width = 83;
  const std::vector<Number> x = take(rows * width), weight = take(width), grad = take(rows * width),
                            both = take(2 * rows * width);
  std::vector<Number> output(rows * width), total = take(rows * width), twice(2 * rows * width);
  norm(rows, width, x.data(), weight.data(), 1e-6f, output.data());
  write(output);
  norm_back(rows, width, grad.data(), x.data(), weight.data(), 1e-6f, total.data(), output.data());
  write(total);
  swiglu(rows, width, both.data(), output.data());
  write(output);
  swiglu_back(rows, width, grad.data(), both.data(), output.data(), twice.data());
  write(twice);
  std::vector<float> sums(rows);
  const std::vector<float> shift = source.next(rows);
  powers_of(rows, width, x.data(), width, shift.data(), sums.data(), output.data(), width);
  write(sums);
  write(output);
}

}  // namespace

int main(int, char** arguments) {
  exact = std::fopen(arguments[1], "wb"), rounded = std::fopen(arguments[2], "wb");
  if (exact == nullptr || rounded == nullptr) return 1;
  Numbers source;
  for (const i64 rows : {1, 2, 4, 7, 16, 37}) multiply(source, rows, 101, 70);
  for (const i64 rows : {1, 5}) add_updates(source, 83, 150, 6, rows);
  look_through_logits(source, 3, 2 * VOCABULARY_BLOCK + 37);
  decode(source, 48, 80, 37, 18);   // threads share the rows
  decode(source, 160, 6400, 6, 2);  // threads share the products: the weights are larger
  elementwise<float>([&](i64 count) { return source.next(count); }, tinkersmith_rms_norm_float32,
                     tinkersmith_rms_norm_backward_float32, tinkersmith_swiglu_float32,
                     tinkersmith_swiglu_backward_float32, tinkersmith_exponentials_float32, source);
  elementwise<bf16>([&](i64 count) { return source.next_bf16(count); },
                    tinkersmith_rms_norm_bfloat16, tinkersmith_rms_norm_backward_bfloat16,
                    tinkersmith_swiglu_bfloat16, tinkersmith_swiglu_backward_bfloat16,
                    tinkersmith_exponentials_bfloat16, source);
  return std::fclose(exact) | std::fclose(rounded);
}
