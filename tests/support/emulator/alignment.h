#pragma once
// The function that gcc calls before a misaligned access, with -fsanitize=alignment alone; with
// other sanitizers it calls their library.

#include "emulator.h"

#ifndef ITM_ADDRESSES
struct Misaligned {
  const char* file;
  uint32_t line, column;
  const void* type;
  unsigned char log_alignment, kind;
};
extern "C" [[noreturn, gnu::visibility("hidden")]] void __ubsan_handle_type_mismatch_v1_abort(
    void* access, void*) {
  const auto& [file, line, column, type, log_alignment, kind] = *static_cast<Misaligned*>(access);
  const std::string path = file, name = path.substr(path.rfind('/') + 1);
  emulator::Block::current().stop("global memory: an access of " +
                                  std::to_string(1 << log_alignment) + " bytes is not aligned at " +
                                  name + ":" + std::to_string(line));
}
#endif
