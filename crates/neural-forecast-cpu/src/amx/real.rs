//! The tile instructions themselves, and the proof that this process may run them.
//!
//! `asm!` because the intrinsics are unstable. Each method is one instruction in its own block, and
//! the tiles keep their values from one block to the next although no block tells the compiler so.
//! That is sound as follows. The compiler never has a value in a tile register: without the
//! `amx-tile` feature, which no code here enables, it can neither allocate one nor emit an
//! instruction that touches one, so there is nothing that it could save, restore or move there.
//! `asm!` blocks that are not `pure` are never removed or merged and keep their order among each
//! other. What could run between them on the same thread: this crate's own scalar code; and signal
//! handlers and the scheduler, for which the operating system saves the tiles (that is what the
//! permission is about).

use super::{TileConfig, Tiles};
use crate::simd::{Avx512Bf16, Avx512Fp16};
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::OnceLock;

/// Proof that the processor has AMX with bf16 and int8 besides all of tier `avx512-fp16` (no
/// processor has AMX without), that the operating system saves the tiles, and that it lets this
/// process use them.
#[derive(Clone, Copy, Debug)]
pub struct Amx {
    vectors: Avx512Fp16,
    l1: usize,
}

/// Kernel components 17 (tile shapes) and 18 (tile data) of `XCR0`.
const TILE_STATE: u32 = 0b11 << 17;
#[cfg(target_os = "linux")]
const SYS_ARCH_PRCTL: u64 = 158;
#[cfg(target_os = "linux")]
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
#[cfg(target_os = "linux")]
const XTILEDATA: u64 = 18;

impl Amx {
    /// Name in kernel counters and in `NF_CPU_ISA`.
    pub const NAME: &'static str = "amx";

    /// The token, if this machine has the features and this process gets the permission, which is
    /// asked for once.
    pub fn new() -> Option<Amx> {
        static FOUND: OnceLock<Option<Amx>> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let vectors = Avx512Fp16::new()?;
            let usable = processor_has_amx() && system_saves_tiles() && permitted();
            usable.then(|| Amx { vectors, l1: level_one_bytes() })
        })
    }

    /// The vector tier that multiplies what tiles do not.
    pub fn vectors(self) -> Avx512Bf16 {
        self.vectors.bf16()
    }

    /// The tier that it extends.
    pub fn fp16(self) -> Avx512Fp16 {
        self.vectors
    }

    /// Bytes of the first-level data cache.
    pub fn l1(self) -> usize {
        self.l1
    }
}

/// CPUID: AMX-TILE, AMX-BF16, AMX-INT8, and a palette 1 of eight tiles of 16 rows of 64 bytes that
/// the multiplier takes whole.
fn processor_has_amx() -> bool {
    if __cpuid(0).eax < 0x1e {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    let (bf16, tile, int8) = (1 << 22, 1 << 24, 1 << 25);
    if features & (bf16 | tile | int8) != bf16 | tile | int8 {
        return false;
    }
    let palette = __cpuid_count(0x1d, 1);
    let (row_bytes, tiles) = (palette.ebx & 0xffff, palette.ebx >> 16);
    let rows = palette.ecx & 0xffff;
    let multiplier = __cpuid_count(0x1e, 0).ebx;
    let (k, n_bytes) = (multiplier & 0xff, (multiplier >> 8) & 0xffff);
    tiles >= 8 && rows >= 16 && row_bytes >= 64 && k >= 16 && n_bytes >= 64
}

/// Size of the first-level data cache from CPUID 4, which is there where AMX is; the 48 KiB of the
/// first processors with AMX should a hypervisor hide it.
fn level_one_bytes() -> usize {
    for i in 0..16 {
        let cache = __cpuid_count(4, i);
        let (kind, level) = (cache.eax & 31, cache.eax >> 5 & 7);
        if kind == 0 {
            break;
        }
        if (kind, level) == (1, 1) {
            let line = (cache.ebx & 0xfff) + 1;
            let partitions = (cache.ebx >> 12 & 0x3ff) + 1;
            let ways = (cache.ebx >> 22) + 1;
            return line as usize * partitions as usize * ways as usize * (cache.ecx as usize + 1);
        }
    }
    48 * 1024
}

/// Whether `XCR0` has both components of the tile state.
fn system_saves_tiles() -> bool {
    let osxsave = 1 << 27;
    if __cpuid(1).ecx & osxsave == 0 {
        return false;
    }
    let enabled: u32;
    // SAFETY: OSXSAVE says that XGETBV exists for programs; component 0 is always there.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _,
            options(nomem, nostack, preserves_flags));
    }
    enabled & TILE_STATE == TILE_STATE
}

/// Asks Linux for the tile data, which it keeps from processes that did not ask.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    let result: i64;
    // SAFETY: `arch_prctl` with these arguments reads and writes no memory of this process; the
    // instruction overwrites RCX and R11, as said.
    unsafe {
        asm!("syscall", inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XTILEDATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}

/// No other system's way to the permission is known here.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

impl Tiles for Amx {
    #[inline(always)]
    unsafe fn configure(&mut self, config: &TileConfig) {
        // SAFETY: `self` proves the instruction; it reads the 64 bytes of `config`, which the
        // caller says are valid.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) config, options(readonly, nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn zero<const T: u8>(&mut self) {
        // SAFETY: `self` proves the instruction; the caller that the tile is configured.
        unsafe {
            asm!("tilezero tmm{t}", t = const T, options(nomem, nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: `self` proves the instruction; the caller that the tile is configured and its
        // rows readable.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {stride}*1]", t = const T, from = in(reg) from,
                stride = in(reg) stride, options(readonly, nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn store<const T: u8>(&mut self, to: *mut u8, stride: usize) {
        // SAFETY: `self` proves the instruction; the caller that the tile is configured and its
        // rows writable.
        unsafe {
            asm!("tilestored [{to} + {stride}*1], tmm{t}", t = const T, to = in(reg) to,
                stride = in(reg) stride, options(nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn dot_bf16<const C: u8, const A: u8, const B: u8>(&mut self) {
        // SAFETY: `self` proves the instruction; the caller that the shapes match.
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nomem, nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn dot_u8s8<const C: u8, const A: u8, const B: u8>(&mut self) {
        // SAFETY: `self` proves the instruction; the caller that the shapes match.
        unsafe {
            asm!("tdpbusd tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nomem, nostack, preserves_flags));
        }
    }
    #[inline(always)]
    fn release(&mut self) {
        // SAFETY: `self` proves the instruction, which has no operand and touches no memory.
        unsafe {
            asm!("tilerelease", options(nomem, nostack, preserves_flags));
        }
    }
}
