// epilogue_math.cuh for the host: the GPU's approximations are the correctly rounded value, off by a
// chosen number of units in the last place, so that their whole range of error can be tried.
#include <math.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define __device__
#define FUSEPASS_EACH for (int i = 0; i < kWidth; ++i)

static int exp2_ulps, other_ulps;

namespace fusepass {

enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat64 = 3, kBool = 4 };

inline float off_by(double exact, int ulps) {
  float v = float(exact);
  if (v == 0 || !std::isfinite(v)) return v;
  for (int i = 0; i < std::abs(ulps); ++i) v = std::nextafter(v, ulps > 0 ? INFINITY : -INFINITY);
  return v;
}
inline float flushed(float v) { return std::fabs(v) < 0x1p-126f ? std::copysign(0.0f, v) : v; }

template <class T> T add_rn(T a, T b) { volatile T r = a + b; return r; }
template <class T> T sub_rn(T a, T b) { volatile T r = a - b; return r; }
template <class T> T mul_rn(T a, T b) { volatile T r = a * b; return r; }
template <class T> T div_rn(T a, T b) { volatile T r = a / b; return r; }
template <class T> T sqrt_rn(T a) { return std::sqrt(a); }
template <class T> T rsqrt(T a) { return T(1 / std::sqrt(double(a))); }
template <class T> T max_nan(T a, T b) { return a != a || b != b ? a + b : a < b ? b : a; }
template <class T> T min_nan(T a, T b) { return a != a || b != b ? a + b : b < a ? b : a; }

inline float exp2_approx(float v) { return flushed(off_by(std::exp2(double(v)), exp2_ulps)); }
inline float reciprocal_approx(float v) {
  return flushed(off_by(1.0 / double(flushed(v)), other_ulps));
}
inline float divide_approx(float a, float b) { return off_by(double(a) / b, 2 * other_ulps); }
inline float sqrt_approx(float v) { return off_by(std::sqrt(double(v)), other_ulps); }
inline float rsqrt_approx(float v) { return off_by(1 / std::sqrt(double(v)), 2 * other_ulps); }
inline float saturate(float v) { return v > 0 ? (v < 1 ? v : 1) : 0; }

inline float round_bf16(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  bits = v != v ? 0x7FC00000u : (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline float round_f16(float v) { return float(_Float16(v)); }
inline float round_f32(double v) { return float(v); }
inline float round_bf16(double v) { return round_bf16(float(v)); }
inline float round_f16(double v) { return round_f16(float(v)); }

}  // namespace fusepass
