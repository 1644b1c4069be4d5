"""float16 as the kernels of the tests' own host builds have it."""

from __future__ import annotations

HALF = """
inline uint16_t half_bits(float v) {
  const _Float16 h = static_cast<_Float16>(v);
  uint16_t r;
  memcpy(&r, &h, 2);
  return r;
}
inline float half_value(uint16_t bits) {
  _Float16 h;
  memcpy(&h, &bits, 2);
  return h;
}
"""
