//! Loops that do nothing but load a buffer, at the vector width of a tier, and one that does
//! nothing but count cycles.
//!
//! In assembly, because a compiler drops loads that nobody uses, and combining them costs what is
//! to be measured.

use crate::isa::Isa;

/// What a loop turn reads; buffers are multiples of it.
pub(super) const BLOCK: usize = 1024;

/// Loads all of `data` `passes` times with vectors of the tier; the tail beyond whole blocks is
/// left out.
pub(super) fn read(isa: Isa, data: &[f32], passes: usize) {
    let blocks = size_of_val(data) / BLOCK;
    if blocks == 0 {
        return;
    }
    let first = data.as_ptr().cast::<u8>();
    #[cfg(target_arch = "x86_64")]
    match isa.lanes() {
        // SAFETY: `blocks` blocks are inside `data`; a tier of 16 lanes exists only with AVX-512.
        16 => unsafe { x86::read_512(first, blocks, passes) },
        // SAFETY: as above; a tier of 8 lanes exists only with AVX2.
        8 => unsafe { x86::read_256(first, blocks, passes) },
        // SAFETY: as above; 128 bits are part of every x86-64.
        _ => unsafe { x86::read_128(first, blocks, passes) },
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (isa, first);
        for _ in 0..passes {
            let words = std::hint::black_box(&data[..blocks * BLOCK / size_of::<f32>()]);
            std::hint::black_box(words.iter().fold(0, |all, x| all ^ x.to_bits()));
        }
    }
}

/// Runs `cycles` cycles at least, by instructions of which each needs the one before; `false` where
/// no such loop is known.
pub(super) fn spend(cycles: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    x86::spend(cycles.div_ceil(x86::CHAIN));
    #[cfg(not(target_arch = "x86_64"))]
    let _ = cycles;
    cfg!(target_arch = "x86_64")
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;

    /// Instructions of a turn of [`spend`].
    pub(super) const CHAIN: usize = 16;

    /// Sixteen exclusive-ors into one register: a cycle each, on every x86-64 processor; additions
    /// of constants are free on some.
    pub(super) fn spend(turns: usize) {
        if turns == 0 {
            return;
        }
        // SAFETY: registers only; the loop ends because `turns` is at least 1.
        unsafe {
            asm!(
                "2:",
                "xor {x}, {y}", "xor {x}, {y}", "xor {x}, {y}", "xor {x}, {y}",
                "xor {x}, {y}", "xor {x}, {y}", "xor {x}, {y}", "xor {x}, {y}",
                "xor {x}, {y}", "xor {x}, {y}", "xor {x}, {y}", "xor {x}, {y}",
                "xor {x}, {y}", "xor {x}, {y}", "xor {x}, {y}", "xor {x}, {y}",
                "dec {n}",
                "jnz 2b",
                x = inout(reg) 1usize => _,
                y = in(reg) 3usize,
                n = inout(reg) turns => _,
                options(nomem, nostack),
            );
        }
    }

    /// A function that loads blocks of 1,024 bytes into eight registers in turn. One alone would
    /// do, were it not that 128-bit loads keep a register's upper half and so wait for the last.
    macro_rules! reader {
        ($name:ident, $feature:literal, $move:literal, $class:ident,
            $([$a:literal $b:literal $c:literal $d:literal $e:literal $f:literal $g:literal
                $h:literal])*) => {
            /// # Safety
            /// `first` is readable for `blocks` blocks, of which there is at least one.
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn $name(first: *const u8, blocks: usize, passes: usize) {
                for _ in 0..passes {
                    // SAFETY: the caller grants the blocks; the loads need no alignment, the loop
                    // reads `blocks` times 1,024 bytes and ends because there is at least one.
                    unsafe {
                        asm!(
                            ".p2align 6",
                            "2:",
                            $(
                                concat!($move, " {v0}, [{p} + ", $a, "]"),
                                concat!($move, " {v1}, [{p} + ", $b, "]"),
                                concat!($move, " {v2}, [{p} + ", $c, "]"),
                                concat!($move, " {v3}, [{p} + ", $d, "]"),
                                concat!($move, " {v4}, [{p} + ", $e, "]"),
                                concat!($move, " {v5}, [{p} + ", $f, "]"),
                                concat!($move, " {v6}, [{p} + ", $g, "]"),
                                concat!($move, " {v7}, [{p} + ", $h, "]"),
                            )*
                            "add {p}, 1024",
                            "dec {n}",
                            "jnz 2b",
                            p = inout(reg) first => _,
                            n = inout(reg) blocks => _,
                            v0 = out($class) _, v1 = out($class) _, v2 = out($class) _,
                            v3 = out($class) _, v4 = out($class) _, v5 = out($class) _,
                            v6 = out($class) _, v7 = out($class) _,
                            options(readonly, nostack),
                        );
                    }
                }
            }
        };
    }

    reader!(read_512, "avx512f", "vmovups", zmm_reg,
        [0 64 128 192 256 320 384 448]
        [512 576 640 704 768 832 896 960]
    );
    reader!(read_256, "avx", "vmovups", ymm_reg,
        [0 32 64 96 128 160 192 224]
        [256 288 320 352 384 416 448 480]
        [512 544 576 608 640 672 704 736]
        [768 800 832 864 896 928 960 992]
    );
    reader!(read_128, "sse2", "movups", xmm_reg,
        [0 16 32 48 64 80 96 112]
        [128 144 160 176 192 208 224 240]
        [256 272 288 304 320 336 352 368]
        [384 400 416 432 448 464 480 496]
        [512 528 544 560 576 592 608 624]
        [640 656 672 688 704 720 736 752]
        [768 784 800 816 832 848 864 880]
        [896 912 928 944 960 976 992 1008]
    );
}
