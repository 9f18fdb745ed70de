// Values of a program: what they are, and where their elements lie.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

namespace weightpager {

// bfloat16 only of parameters that are multiplied with or looked up in.
enum class Type : int { float32, int64, boolean, bfloat16 };

inline int64_t bytes_of(Type type) {
    return type == Type::int64 ? 8 : type == Type::float32 ? 4 : type == Type::bfloat16 ? 2 : 1;
}

constexpr int kMostAxes = 8;
constexpr int64_t kLargestAxis = int64_t{1} << 31, kMostElements = int64_t{1} << 40;

using Sizes = std::vector<int64_t>;

std::string text_of(const Sizes& sizes);
std::string text_of(Type type);

// Throws std::invalid_argument where there are too many axes or elements, or a size is negative.
int64_t checked_elements(const Sizes& sizes);

// A product of counts; the largest number where it doesn't fit.
int64_t product_of(std::initializer_list<int64_t> counts);

// In elements, of axes without gaps.
Sizes dense_strides(const Sizes& sizes);

// Memory that a view looks at: of a call's input, of the program's parameter, or of a buffer among the activations.
enum class Memory : int { input, parameter, buffer };

struct View {
    Type type = Type::float32;
    Sizes sizes, strides;  // strides in elements
    Memory memory = Memory::buffer;
    int64_t number = -1;  // of the input, parameter or buffer
    int64_t offset = 0;   // in elements

    int64_t rank() const { return static_cast<int64_t>(sizes.size()); }
    int64_t elements() const;
    int64_t last() const { return sizes.empty() ? 1 : sizes.back(); }
    int64_t rows() const { return last() == 0 ? 0 : elements() / last(); }
    bool dense() const;
};

inline std::string text_of(const View& view) { return text_of(view.type) + " " + text_of(view.sizes); }
inline const std::string& text_of(const std::string& text) { return text; }
inline const char* text_of(const char* text) { return text; }

template <class Integer, std::enable_if_t<std::is_integral_v<Integer>, int> = 0>
std::string text_of(Integer number) {
    return std::to_string(number);
}

}  // namespace weightpager
