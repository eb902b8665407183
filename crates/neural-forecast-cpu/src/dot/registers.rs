//! Tables whose tiles are multiplied in tile registers: all rows of a pass and as many panels as
//! the buffer of sums takes go into one product, so that the registers are configured rarely and
//! few rows meet enough columns to keep the multiplier busy. Bytes of few rows go to the vectors,
//! which give the same integers sooner; bf16 do not, because other orders of adding give other
//! bits.
//!
//! Conversion of rows is the vector tiers'. How a product is walked is [`crate::amx`]'s.

use super::Args;
#[cfg(target_arch = "x86_64")]
use super::{Dot, Multiply, x86};
#[cfg(target_arch = "x86_64")]
use crate::amx::Amx;
use crate::amx::{Arithmetic, Bf16, Int8, Product, Tiles};
use crate::counters::Precision;
#[cfg(target_arch = "x86_64")]
use std::sync::OnceLock;

/// Sums of the panels that a product takes at once, 32 KiB, unless one panel has more: what follows
/// a sum finds it in a cache near the core.
pub(crate) const SUMS_AT_ONCE: usize = 8192;

/// Rows up to which a tile of weights serves too few of them to be worth its loading: `lstm_a` and
/// `lstm_b` in bytes took 126 and 787 µs in tiles, 61 to 75 and 432 to 572 in vectors (Xeon with
/// 2 MiB of L2, 2 threads, 2026-11-21).
const ROWS_IN_VECTORS: usize = 4;

/// Who multiplies, and what a word holds.
#[derive(Debug)]
pub(super) struct Multiplier {
    registers: Registers,
    precision: Precision,
    /// What multiplies [`ROWS_IN_VECTORS`], if not the registers.
    few: Option<&'static Dot>,
}

#[derive(Debug)]
enum Registers {
    #[cfg(target_arch = "x86_64")]
    Amx(Amx),
    /// Tests walk whole products on machines without AMX.
    #[cfg(test)]
    Emulated,
}

impl Multiplier {
    /// # Safety
    /// As [`Dot::tile`].
    pub(super) unsafe fn tile(&self, args: &Args) {
        // SAFETY: the caller's.
        unsafe {
            if let Some(few) = self.few
                && args.rows <= ROWS_IN_VECTORS
            {
                return in_vectors(few, args);
            }
            match self.registers {
                #[cfg(target_arch = "x86_64")]
                Registers::Amx(amx) => product(&mut { amx }, amx.l1(), self.precision, args),
                #[cfg(test)]
                Registers::Emulated => {
                    product(&mut crate::amx::Emulated::new(), 4096, self.precision, args)
                }
            }
        }
    }
}

/// The panels of a tile in the groups that vectors take.
unsafe fn in_vectors(vectors: &Dot, args: &Args) {
    let at_once = vectors.panels_at_once(args.rows, args.vectors);
    let mut first = 0;
    while first < args.panels {
        let left = args.panels - first;
        let panels = if left >= at_once { at_once } else { vectors.panels_of_rest(left) };
        let width = args.vectors * crate::amx::TILE_WORDS;
        // SAFETY: the caller grants all panels of these rows and their sums; the groups are those
        // that the vectors' table takes, and rows are fewer than any tile of it has.
        unsafe {
            vectors.tile(&Args {
                panel: args.panel.add(first * args.panel_stride),
                panels,
                out: args.out.add(first * width),
                ..*args
            });
        }
        first += panels;
    }
}

unsafe fn product<T: Tiles>(tiles: &mut T, l1: usize, precision: Precision, args: &Args) {
    // SAFETY: the caller's.
    unsafe {
        match precision {
            Precision::Int8 => run::<T, Int8>(tiles, l1, args),
            _ => run::<T, Bf16>(tiles, l1, args),
        }
    }
}

unsafe fn run<T: Tiles, A: Arithmetic>(tiles: &mut T, l1: usize, args: &Args) {
    let product = Product::<A> {
        rows: args.rows,
        steps: args.words.div_ceil(super::WORDS_MULTIPLE),
        input: args.x.cast(),
        input_stride: args.x_stride * size_of::<u32>(),
        panels: args.panels,
        vectors: args.vectors,
        weights: args.panel,
        panel_stride: args.panel_stride,
        out: args.out.cast(),
        out_stride: args.out_stride,
        out_panel_stride: args.vectors * crate::amx::TILE_WORDS,
        accumulate: false,
        pass: Product::<A>::steps_in_cache(l1),
    };
    // SAFETY: the caller grants rows and panels of whole steps, and the sums.
    unsafe { product.run(tiles) }
}

fn panels_at_once(rows: usize, vectors: usize) -> usize {
    (SUMS_AT_ONCE / (rows.max(1) * vectors * crate::amx::TILE_WORDS)).max(1)
}

/// `TDPBF16PS` and `TDPBUSD`.
#[cfg(target_arch = "x86_64")]
pub(super) fn amx(token: Amx, precision: Precision) -> &'static Dot {
    static BF16: OnceLock<Dot> = OnceLock::new();
    static INT8: OnceLock<Dot> = OnceLock::new();
    let (table, vectors) = match precision {
        Precision::Int8 => (&INT8, x86::int8_vnni(token.vectors().vnni())),
        _ => (&BF16, x86::bf16(token.vectors())),
    };
    table.get_or_init(|| with(Registers::Amx(token), precision, vectors, true))
}

/// A table that converts as `vectors` does; which may multiply few rows of bytes.
#[cfg(target_arch = "x86_64")]
fn with(registers: Registers, precision: Precision, vectors: &'static Dot, share: bool) -> Dot {
    let few = (share && precision == Precision::Int8).then_some(vectors);
    let tile = Multiply::Tiles(Multiplier { registers, precision, few });
    Dot { rows: [usize::MAX; 4], panels: panels_at_once, tile, ..*vectors }
}

/// A table on emulated registers that converts as `vectors` does, and may share with them.
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) fn emulated(precision: Precision, vectors: &'static Dot, share: bool) -> &'static Dot {
    use std::collections::HashMap;
    use std::sync::{Mutex, PoisonError};
    type Tables = HashMap<(usize, Precision, bool), &'static Dot>;
    // One for each tier and precision, kept within reach: to a leak detector it is none.
    static TABLES: Mutex<Option<Tables>> = Mutex::new(None);
    let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (std::ptr::from_ref(vectors).addr(), precision, share);
    tables.get_or_insert_default().entry(key).or_insert_with(|| {
        Box::leak(Box::new(with(Registers::Emulated, precision, vectors, share)))
    })
}
