// The epilogue's stages in float32, cheap enough to hide behind a mainloop; NaN and inf as torch.
//
// A stage is a struct with its number of scalars and apply(v, its scalars), over a few elements at
// once. The last stage of a chain is also cut in three, begin, middle, end, with two registers an
// element in between: the consumer runs the parts of successive elements side by side, because one
// warp alone must keep its scheduler busy while the accumulators fill the register file.
#pragma once

namespace fusepass {

__device__ inline float max_nan(float a, float b) {  // NaN if either is, unlike fmaxf
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}

__device__ inline float min_nan(float a, float b) {
  float r;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}

__device__ inline float exp2_approx(float v) {  // 2 ulp; subnormal results are 0
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

__device__ inline float reciprocal_approx(float v) {  // 1 ulp; 1/inf is 0
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

#define FUSEPASS_EACH _Pragma("unroll") for (int i = 0; i < kWidth; ++i)

template <int kWidth>
struct Batch {
  float v[kWidth], t[kWidth], p[kWidth];  // elements, and what the last stage keeps beside them
};

// A stage too short to be cut: all of it is the first part.
template <class Stage>
struct Short {
  template <int kWidth>
  __device__ static void begin(Batch<kWidth>& b, const float* s) {
    Stage::apply(b.v, s);
  }
  template <int kWidth>
  __device__ static void middle(Batch<kWidth>&) {}
  template <int kWidth>
  __device__ static void end(Batch<kWidth>&) {}
};

// A stage that is cut: all of it is its parts.
template <class Stage>
struct Long {
  static constexpr int kScalars = 0;
  template <int kWidth>
  __device__ static void apply(float (&v)[kWidth], const float* s) {
    Batch<kWidth> b;
    FUSEPASS_EACH b.v[i] = v[i];
    Stage::begin(b, s);
    Stage::middle(b);
    Stage::end(b);
    FUSEPASS_EACH v[i] = b.v[i];
  }
};

// What an epilogue without stages does.
struct Nothing : Short<Nothing> {
  static constexpr int kScalars = 0;
  template <int kWidth>
  __device__ static void apply(float (&)[kWidth], const float*) {}
};

// Not a stage: says that scalars of those behind it are only known when the kernel runs.
struct Operands : Short<Operands> {
  static constexpr int kScalars = 0;
  template <int kWidth>
  __device__ static void apply(float (&)[kWidth], const float*) {}
};

struct Mul : Short<Mul> {
  static constexpr int kScalars = 1;
  template <int kWidth>
  __device__ static void apply(float (&v)[kWidth], const float* s) {
    FUSEPASS_EACH v[i] *= s[0];
  }
};

struct Div : Short<Div> {
  static constexpr int kScalars = 1;
  template <int kWidth>
  __device__ static void apply(float (&v)[kWidth], const float* s) {
    // 2 ulp over the full range, and no subroutine call as in an exact division.
    FUSEPASS_EACH asm("div.full.f32 %0, %0, %1;" : "+f"(v[i]) : "f"(s[0]));
  }
};

struct Clamp : Short<Clamp> {
  static constexpr int kScalars = 2;
  template <int kWidth>
  __device__ static void apply(float (&v)[kWidth], const float* s) {
    FUSEPASS_EACH v[i] = max_nan(v[i], s[0]);
    FUSEPASS_EACH v[i] = min_nan(v[i], s[1]);
  }
};

// v * Phi(v) as max(v, 0) - |v| * Phi(-|v|), with 2 * Phi(-|v|) = 2^P(|v|/2) and P a minimax
// polynomial of degree 7 without constant term on |v| <= 6.25 (tests/test_gelu_device.py has the
// proof): relative error 6.5e-6 down to v = -6, absolute error 3e-14 below. No cancellation in the
// negative tail, where 1 + erf(v / sqrt(2)) loses everything. P falls ever faster beyond its
// range, so the power is 0 there. max(v, 0) is |v|/2 + v/2, which makes -inf NaN, as in torch, and
// the product uses a finite |v|, which keeps +inf.
//
// It starts from v/2: kHalved says that the stages before it already give that.
template <bool kHalved>
struct GeluOf : Long<GeluOf<kHalved>> {
  template <int kWidth>
  __device__ static void begin(Batch<kWidth>& b, const float*) {
    if (!kHalved) {
      FUSEPASS_EACH b.v[i] *= 0.5f;
    }
    FUSEPASS_EACH b.t[i] = fminf(fabsf(b.v[i]), 3.0e38f);
  }
  template <int kWidth>
  __device__ static void middle(Batch<kWidth>& b) {
    constexpr float kP[] = {3.888772102072835e-3f,   -2.9549483209848404e-2f,
                            1.356414556503296e-1f,   -4.3113672733306885e-1f,
                            -1.8341631889343262f,    -2.30242919921875f};
    FUSEPASS_EACH b.p[i] = __fmaf_rn(-2.298724721185863e-4f, b.t[i], kP[0]);
#pragma unroll
    for (int k = 1; k < 6; ++k) {
      FUSEPASS_EACH b.p[i] = __fmaf_rn(b.p[i], b.t[i], kP[k]);
    }
    FUSEPASS_EACH b.p[i] *= b.t[i];
    FUSEPASS_EACH b.p[i] = exp2_approx(b.p[i]);
  }
  template <int kWidth>
  __device__ static void end(Batch<kWidth>& b) {
    FUSEPASS_EACH b.v[i] += fabsf(b.v[i]);
    FUSEPASS_EACH b.v[i] = __fmaf_rn(-b.t[i], b.p[i], b.v[i]);
  }
};

using Gelu = GeluOf<false>;

// The same where a clamp has left |v| <= 2, with h = v/2: gelu(v) = h + S(h^2), S the even part, a
// minimax polynomial of degree 6 without constant term: relative error 9e-6. No power, four
// instructions less.
template <bool kHalved>
struct GeluWithin2Of : Long<GeluWithin2Of<kHalved>> {
  template <int kWidth>
  __device__ static void begin(Batch<kWidth>& b, const float*) {
    if (!kHalved) {
      FUSEPASS_EACH b.v[i] *= 0.5f;
    }
    FUSEPASS_EACH b.t[i] = b.v[i] * b.v[i];
  }
  template <int kWidth>
  __device__ static void middle(Batch<kWidth>& b) {
    constexpr float kS[] = {9.013959765434265e-2f, -2.862320840358734e-1f, 6.324054598808289e-1f,
                            -1.0629267692565918f, 1.5957221984863281f};
    FUSEPASS_EACH b.p[i] = __fmaf_rn(-1.4608859084546566e-2f, b.t[i], kS[0]);
#pragma unroll
    for (int k = 1; k < 5; ++k) {
      FUSEPASS_EACH b.p[i] = __fmaf_rn(b.p[i], b.t[i], kS[k]);
    }
  }
  template <int kWidth>
  __device__ static void end(Batch<kWidth>& b) {
    FUSEPASS_EACH b.v[i] = __fmaf_rn(b.t[i], b.p[i], b.v[i]);
  }
};

using GeluWithin2 = GeluWithin2Of<false>;

// v/2 * (1 + tanh(u)) = v / (1 + exp(-2u)), u = sqrt(2/pi) * (v + 0.044715 v^3): torch's formula
// without its cancellation.
struct GeluTanh : Long<GeluTanh> {
  template <int kWidth>
  __device__ static void begin(Batch<kWidth>& b, const float*) {
    constexpr float kLinear = -2.302208198144325f;  // -2 * sqrt(2/pi) * log2(e)
    FUSEPASS_EACH b.p[i] = b.v[i] * b.v[i];
    FUSEPASS_EACH b.p[i] = __fmaf_rn(b.p[i], kLinear * 0.044715f, kLinear);
  }
  template <int kWidth>
  __device__ static void middle(Batch<kWidth>& b) {
    FUSEPASS_EACH b.p[i] = exp2_approx(b.p[i] * b.v[i]);
  }
  template <int kWidth>
  __device__ static void end(Batch<kWidth>& b) {
    FUSEPASS_EACH b.v[i] *= reciprocal_approx(b.p[i] + 1.0f);
  }
};

}  // namespace fusepass
