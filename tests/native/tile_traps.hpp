// AMX instructions on a processor that has none: what the compiler made of the kernel, instead of its source with
// emulated tiles.
#pragma once

// From now on tile instructions that the processor refuses are carried out in software.
void trap_tiles();
