// What the epilogue's program asks of the 16-bit kernel, and where it lies in shared memory.
#pragma once
#include "gemm_sm90_epilogue.cuh"
#include "gemm_sm90_tile.cuh"

namespace fusepass {

constexpr DType kSite = FUSEPASS_BF16 ? DType::kBFloat16 : DType::kFloat16;

FUSEPASS_KNOWN constexpr int size_of(DType t) {
  return t == DType::kFloat32 ? 4 : t == DType::kBool ? 1 : 2;
}
FUSEPASS_KNOWN constexpr bool is_known(DType t) { return t == kSite || t == DType::kFloat32; }

// A program has a member of each kind of operand that it reads, and no others.
template <class E>
struct Reads {
  FUSEPASS_KNOWN static constexpr DType col(int i) {
    if constexpr (E::kCols > 0) return E::kColDType[i];
    return kSite;
  }
  FUSEPASS_KNOWN static constexpr DType row(int i) {
    if constexpr (E::kRows > 0) return E::kRowDType[i];
    return kSite;
  }
  FUSEPASS_KNOWN static constexpr int col_part(int i) {
    if constexpr (E::kCols > 0) return E::kColFirstRead[i];
    return -1;
  }
  FUSEPASS_KNOWN static constexpr int row_part(int i) {
    if constexpr (E::kRows > 0) return E::kRowFirstRead[i];
    return -1;
  }
  FUSEPASS_KNOWN static constexpr int mat_part(int i) {
    if constexpr (E::kMats > 0) return E::kMatFirstRead[i];
    return -1;
  }
  FUSEPASS_KNOWN static constexpr DType mat(int i) {
    if constexpr (E::kMats > 0) return E::kMatDType[i];
    return kSite;
  }
  // Of the `index`-th output that is stored, the site's for z behind them.
  FUSEPASS_KNOWN static constexpr DType store(int index) {
    for (int i = 0, stored = 0; i < E::kOutputs; ++i) {
      if (!E::kIsColumnSum[i] && stored++ == index) return E::kOutputDType[i];
    }
    return kSite;
  }
  FUSEPASS_KNOWN static constexpr bool suits() {
    bool all = true;
    for (int i = 0; i < E::kCols; ++i) all = all && is_known(col(i));
    for (int i = 0; i < E::kRows; ++i) all = all && is_known(row(i));
    for (int i = 0; i < E::kMats; ++i) all = all && (is_known(mat(i)) || mat(i) == DType::kBool);
    for (int i = 0; i < E::kOutputs; ++i) all = all && is_known(E::kOutputDType[i]);
    return all;
  }
  FUSEPASS_KNOWN static constexpr bool reads_bytes() {
    bool any = false;
    for (int i = 0; i < E::kMats; ++i) any = any || mat(i) == DType::kBool;
    return any;
  }
  FUSEPASS_KNOWN static constexpr int col_offset(int i) {  // bytes a column of the operands before
    int sum = 0;
    for (int j = 0; j < i; ++j) sum += size_of(col(j));
    return sum;
  }
  FUSEPASS_KNOWN static constexpr int row_offset(int i) {
    int sum = 0;
    for (int j = 0; j < i; ++j) sum += size_of(row(j));
    return sum;
  }
  FUSEPASS_KNOWN static constexpr int stores() {
    int count = 0;
    for (int i = 0; i < E::kOutputs; ++i) count += !E::kIsColumnSum[i];
    return count;
  }
};
using Program = Reads<Epilogue>;
static_assert(Program::suits(), "an operand or output of a dtype that the plan must not send here");

constexpr int kMats = Epilogue::kMats;
constexpr int kSums = Epilogue::kOutputs - Program::stores();
constexpr int kStores = Program::stores() + kStorePreact;  // z is the last
constexpr bool kHasVectors = Epilogue::kCols + Epilogue::kRows > 0;
static_assert(kMats <= kMaxMats && kStores >= 1 && kStores <= kMaxOutputs);
static_assert(kSums == 0 || (kSwapped && kSplit == 1), "a thread sums along the accumulators");

// Where the buffers of a slot begin, in bytes of 16 x 8 elements: of mat operands in turn; of an output
// that overwrites one of them, there, or else behind them.
FUSEPASS_KNOWN constexpr int mat_offset(int index) {
  int sum = 0;
  for (int i = 0; i < index; ++i) sum += 128 * size_of(Program::mat(i));
  return sum;
}
FUSEPASS_KNOWN constexpr int store_offset(int index) {
  int read[kMaxMats] = {}, written[kMaxOutputs] = {};
  for (int i = 0; i < kMats; ++i) read[i] = size_of(Program::mat(i));
  for (int i = 0; i < kStores; ++i) written[i] = size_of(Program::store(i));
  const int over = index < kStores ? overwritten(read, kMats, written, index + 1) : -1;
  return over >= 0 ? mat_offset(over) : bytes_of_slot(read, kMats, written, index);
}

// Each warp stages 16 rows x kChunk columns of output at a time and stores them itself; swapped, a
// consumer's warps together kChunk rows x 64 columns of output. What it reads of mat operands arrives
// in the same places.
constexpr Geometry kGeometry{kTileM,
                             kTileN,
                             kRing,
                             kConsumers,
                             kSplit,
                             kPingpong,
                             kSwapped,
                             kStores,
                             kMats,
                             store_offset(kStores),
                             Program::col_offset(Epilogue::kCols),
                             Program::row_offset(Epilogue::kRows),
                             kGated,
                             Program::reads_bytes()};
constexpr int kChunkUnits = chunk_units(kGeometry);
static_assert(kChunkUnits >= (kMats > 0 ? 4 : kSwapped ? 2 : 3),
              "a chunk is written after the store before it, and waited for after it was asked for");
constexpr int kChunk = 8 * kChunkUnits;
constexpr bool kSwizzled = kChunkUnits == 8;  // otherwise the odd pitch keeps banks apart
constexpr int kSlots = staging_slots(kGeometry);
constexpr int kSlotBytes = kGeometry.slot_bytes * kChunkUnits;  // of a warp
constexpr int kTileChunks = tile_chunks(kGeometry);
constexpr int kSlotOwners = slot_owners(kGeometry);
constexpr int kOutBlocks = finished_rows(kGeometry) / 64;  // of a consumer
constexpr int kBlockChunks = kTileChunks / kOutBlocks;

struct SharedLayout {
  static constexpr int kStaged = kRing * kBytesStage;
  static constexpr int kBias = kStaged + kConsumers * 4 * kSlots * kSlotBytes;
  static constexpr int kBiasBytes = bias_bytes(kGeometry);  // of a consumer
  static constexpr int kVectors = kBias + kConsumers * kBiasBytes;
  static constexpr int kVectorBytes = vector_bytes(kGeometry);  // of a consumer
  static constexpr int kFull = kVectors + kConsumers * kVectorBytes;
  static constexpr int kEmpty = kFull + kRing * 8;
  static constexpr int kSlotFull = kEmpty + kRing * 8;  // of each owner, kSlots
  static constexpr int kTotal = kSlotFull + (kMats > 0 ? 8 * kSlotOwners * kSlots : 0);
};
static_assert(SharedLayout::kTotal == shared_bytes(kGeometry), "the host asks for another size");

}  // namespace fusepass
