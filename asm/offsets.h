// offsets.h - where asm/ finds the fields it touches, shared by .S and C++.
//
// Invariant: each constant is nailed by a static_assert in sched/g.cc. Nothing but
// plain #defines may stand here: the assembler reads this file too.
#pragma once

#define G_SP 0        // G::sp, saved stack pointer while switched away
#define G_FS 8        // G::fs, TCB address = FS base
#define G_ON_CPU 16   // G::on_cpu, 1 until the registers are saved and FS has moved
