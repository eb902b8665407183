//! Symbolic dimensions of a plan's values: fixed numbers, the batch, and functions of the context
//! length.
//!
//! Not a general expression language: a plan has exactly two free dimensions, the batch `B` and the
//! context length `L`, and everything a forecaster derives from `L` (padded lengths, patch counts,
//! tokens appended to patches) has the form `times · ⌊(L + shift) / stride⌋ + offset`.

use std::fmt;

/// The sizes that a plan leaves open, fixed when a program is compiled for a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket {
    /// Rows that a program can carry in one run; a run may carry fewer.
    pub batch: usize,
    /// Context length `L` in time steps. Shorter contexts travel left-padded and masked.
    pub length: usize,
}

/// One dimension of a value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A number known when the plan is built.
    Fixed(usize),
    /// `B · factor`: the batch, or the batch with an inner axis of `factor` folded into it.
    Batch(usize),
    /// A function of the context length.
    Length(LengthDim),
}

/// `times · ⌊(L + shift) / stride⌋ + offset`, never below zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LengthDim {
    /// Multiplier of the quotient.
    pub times: usize,
    /// Added to `L` before the division; `stride − 1` makes it a ceiling.
    pub shift: isize,
    /// Divisor, at least 1.
    pub stride: usize,
    /// Added after the multiplication, for example appended tokens.
    pub offset: isize,
}

impl Dim {
    /// The batch itself.
    pub const BATCH: Dim = Dim::Batch(1);
    /// The context length itself.
    pub const LENGTH: Dim = Dim::Length(LengthDim { times: 1, shift: 0, stride: 1, offset: 0 });

    /// The number this dimension has in `bucket`.
    pub fn at(self, bucket: Bucket) -> usize {
        match self {
            Dim::Fixed(n) => n,
            Dim::Batch(factor) => bucket.batch.saturating_mul(factor),
            Dim::Length(d) => {
                let stride = signed(d.stride).max(1);
                let quotient = signed(bucket.length).saturating_add(d.shift).div_euclid(stride);
                let scaled = signed(d.times).saturating_mul(quotient);
                scaled.saturating_add(d.offset).max(0) as usize
            }
        }
    }

    /// The number, where it does not depend on a bucket.
    pub fn fixed(self) -> Option<usize> {
        match self {
            Dim::Fixed(n) => Some(n),
            _ => None,
        }
    }

    /// This dimension plus `n`; `None` for the batch, whose rows are not appended to.
    pub fn plus(self, n: isize) -> Option<Dim> {
        match self {
            Dim::Fixed(m) => m.checked_add_signed(n).map(Dim::Fixed),
            Dim::Batch(_) => None,
            Dim::Length(d) => {
                Some(Dim::Length(LengthDim { offset: d.offset.checked_add(n)?, ..d }))
            }
        }
    }

    /// The sum of two dimensions, where one of them is fixed.
    pub fn sum(self, other: Dim) -> Option<Dim> {
        match (self, other) {
            (a, Dim::Fixed(n)) | (Dim::Fixed(n), a) => a.plus(isize::try_from(n).ok()?),
            _ => None,
        }
    }

    /// This dimension times `n`.
    pub fn times(self, n: usize) -> Option<Dim> {
        match self {
            Dim::Fixed(m) => m.checked_mul(n).map(Dim::Fixed),
            Dim::Batch(f) => f.checked_mul(n).map(Dim::Batch),
            Dim::Length(d) => Some(Dim::Length(LengthDim {
                times: d.times.checked_mul(n)?,
                offset: d.offset.checked_mul(isize::try_from(n).ok()?)?,
                ..d
            })),
        }
    }

    /// `⌊(self + shift) / stride⌋ + offset`: windows of a sliding kernel. `None` for the batch and
    /// for a length that was divided before.
    pub fn windows(self, shift: isize, stride: usize, offset: isize) -> Option<Dim> {
        if stride == 0 {
            return None;
        }
        match self {
            Dim::Fixed(n) => {
                let shifted = isize::try_from(n).ok()?.checked_add(shift)?;
                let quotient = shifted.div_euclid(isize::try_from(stride).ok()?);
                usize::try_from(quotient.checked_add(offset)?).ok().map(Dim::Fixed)
            }
            Dim::Length(LengthDim { times: 1, shift: s, stride: 1, offset: o }) => {
                let shift = s.checked_add(o)?.checked_add(shift)?;
                Some(Dim::Length(LengthDim { times: 1, shift, stride, offset }))
            }
            _ => None,
        }
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Dim {
        Dim::Fixed(n)
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::Batch(1) => f.write_str("B"),
            Dim::Batch(k) => write!(f, "{k}·B"),
            Dim::Length(LengthDim { times, shift, stride, offset }) => {
                if times != 1 {
                    write!(f, "{times}·")?;
                }
                match (shift, stride) {
                    (0, 1) => f.write_str("L")?,
                    (s, 1) => write!(f, "(L{s:+})")?,
                    (0, d) => write!(f, "⌊L/{d}⌋")?,
                    (s, d) => write!(f, "⌊(L{s:+})/{d}⌋")?,
                }
                if offset != 0 {
                    write!(f, "{offset:+}")?;
                }
                Ok(())
            }
        }
    }
}

/// A size as a signed number; sizes that are not representable are larger than any memory.
fn signed(n: usize) -> isize {
    isize::try_from(n).unwrap_or(isize::MAX)
}

/// The element count of a shape in a bucket; `usize::MAX` where it is more than that.
pub fn elements(shape: &[Dim], bucket: Bucket) -> usize {
    shape.iter().fold(1, |count: usize, dim| count.saturating_mul(dim.at(bucket)))
}

/// The numbers of a shape in a bucket.
pub fn sizes(shape: &[Dim], bucket: Bucket) -> Vec<usize> {
    shape.iter().map(|d| d.at(bucket)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patch_counts_follow_the_length() {
        let bucket = Bucket { batch: 3, length: 100 };
        let patches = Dim::LENGTH.windows(7, 8, 0).unwrap();
        assert_eq!(patches.at(bucket), 13, "ceil(100 / 8)");
        assert_eq!(patches.plus(1).unwrap().at(bucket), 14, "with one token appended");
        assert_eq!(Dim::Batch(2).at(bucket), 6);
        assert_eq!(Dim::Fixed(96).windows(-16, 8, 2), Some(Dim::Fixed(12)));
        assert_eq!(Dim::Fixed(3).windows(-16, 8, 1), None, "a window longer than the axis");
    }

    #[test]
    fn shapes_print_as_formulas() {
        let patches = Dim::LENGTH.windows(7, 8, 0).unwrap().plus(1).unwrap();
        assert_eq!(format!("{:?}", [Dim::BATCH, patches, Dim::Fixed(4)]), "[B, ⌊(L+7)/8⌋+1, 4]");
    }
}
