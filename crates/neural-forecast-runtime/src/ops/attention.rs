//! `attention`: softmax attention of queries over keys, with everything the supported families add
//! to it.
//!
//! Does not project: queries, keys and values are column ranges of values that `linear` made, so a
//! fused QKV product needs no copy. No implementation may store a `T × T` matrix; residual scores
//! (RealFormer) are sums of products over depth and are given as such.

use super::{ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, Dim, StateId, ValueId, WeightId};

/// Columns `start .. start + width` of the last axis of a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Columns {
    /// The value `[B, T, …]`.
    pub value: ValueId,
    /// First column.
    pub start: usize,
    /// Number of columns.
    pub width: usize,
}

/// Rotary positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies: pair `j` of a head turns by `position · theta^(−2j / head)`. The
    /// pairs are `(j, j + head/2)`.
    pub theta: f32,
}

/// RMS normalisation of each head's queries and keys, after the rotation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkNorm {
    /// `[head]`.
    pub query: WeightId,
    /// `[head]`.
    pub key: WeightId,
    /// Inside the root.
    pub eps: f32,
}

/// Added to the scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttentionBias {
    /// T5's relative positions: `table[bucket(key − query), head]`.
    Relative {
        /// `[buckets, heads]`.
        table: WeightId,
        /// Distance from which on all share the last bucket.
        max_distance: usize,
        /// Whether the sign of the distance chooses half of the buckets.
        bidirectional: bool,
    },
    /// A mask or bias `[heads or 1, Tq, Tk]`, the same for all rows.
    Weight(WeightId),
}

/// A sliding window of keys and values in state slots.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeyValueRing {
    /// `[capacity, heads · head]`.
    pub keys: StateId,
    /// `[capacity, heads · head]`.
    pub values: StateId,
    /// `[1]`, rows ever written; also the position of the first row of this run.
    pub position: StateId,
}

/// Parameters of `attention`. Writes `[B, Tq, heads · head_v]` (`[B, Tq, head_v]` with
/// `mean_heads`).
///
/// `scores[h, i, j] = Σ_p scale[p] · q_p[i, h]·k_p[j, h] + bias`, softmax over the keys `j` that
/// mask, causality and groups allow; a query that may see no key gets zeros.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Queries `[B, Tq, heads · head]`; more than one where scores of earlier layers are added.
    pub queries: Vec<Columns>,
    /// Keys, as many as queries, `[B, Tk, heads · head]`.
    pub keys: Vec<Columns>,
    /// Values `[B, Tk, heads · head_v]`, or `[B, Tk, head_v]` with `mean_heads`.
    pub values: Columns,
    /// Number of heads.
    pub heads: usize,
    /// Scale of each pair of queries and keys.
    pub scales: Vec<f32>,
    /// Key `j` is visible to query `i` only if `j ≤ i + (Tk − Tq)`.
    pub causal: bool,
    /// `[B, Tk]`: 1 where a key is visible.
    pub key_mask: Option<ValueId>,
    /// Added to the scores.
    pub bias: Option<AttentionBias>,
    /// Rotary positions; position 0 is the first row (of the stream, with a ring).
    pub rope: Option<Rope>,
    /// Normalised queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// `[head]`: query dimension `d` is multiplied by `1.442695041 / √head · softplus(w[d])`.
    pub per_dim_scale: Option<WeightId>,
    /// Attend over the batch instead of over time: row `a` sees row `b` at the same position, if
    /// their groups (`[B]`, `I32`) are equal. The key mask then belongs to `(b, position)`.
    pub groups: Option<ValueId>,
    /// One value head shared by all heads, and the mean over heads as the result.
    pub mean_heads: bool,
    /// Keys and values of earlier runs come first, and this run's are appended.
    pub ring: Option<KeyValueRing>,
}

impl Columns {
    /// All `width` columns of a value.
    pub fn all(value: ValueId, width: usize) -> Self {
        Columns { value, start: 0, width }
    }
}

impl Attention {
    /// Plain attention of one query, key and value.
    pub fn new(query: Columns, key: Columns, values: Columns, heads: usize, scale: f32) -> Self {
        Attention {
            queries: vec![query],
            keys: vec![key],
            values,
            heads,
            scales: vec![scale],
            causal: false,
            key_mask: None,
            bias: None,
            rope: None,
            qk_norm: None,
            per_dim_scale: None,
            groups: None,
            mean_heads: false,
            ring: None,
        }
    }

    /// Width of one head of queries and keys.
    pub fn head(&self) -> usize {
        self.queries.first().map_or(0, |q| q.width / self.heads.max(1))
    }

    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let n = self.queries.len();
        if n == 0 || self.keys.len() != n || self.scales.len() != n || self.heads == 0 {
            return Err(c.error(format!(
                "{n} queries, {} keys, {} scales and {} heads do not fit",
                self.keys.len(),
                self.scales.len(),
                self.heads
            )));
        }
        let width = self.queries[0].width;
        let (rows, queries) = self.columns(c, "queries", &self.queries[0])?;
        let (_, keys) = self.columns(c, "keys", &self.keys[0])?;
        for (what, columns, time) in self
            .queries
            .iter()
            .map(|q| ("queries", q, queries))
            .chain(self.keys.iter().map(|k| ("keys", k, keys)))
        {
            if self.columns(c, what, columns)? != (rows, time) || columns.width != width {
                return Err(c.error(format!("`{what}` differ in shape over depth")));
            }
        }
        if width % self.heads != 0 {
            return Err(c.error(format!("{width} columns do not divide into {} heads", self.heads)));
        }
        if self.columns(c, "values", &self.values)? != (rows, keys) {
            return Err(c.error("`values` and `keys` differ in batch or time"));
        }
        if !self.mean_heads && self.values.width % self.heads != 0 {
            return Err(c.error("value columns do not divide into heads"));
        }
        self.check_options(c, rows, queries, keys)?;
        let out = vec![rows, queries, self.values.width.into()];
        Ok(vec![(DType::F32, out)])
    }

    fn check_options(
        &self,
        c: &ShapeContext<'_>,
        rows: Dim,
        queries: Dim,
        keys: Dim,
    ) -> Result<(), PlanError> {
        let head = self.head();
        if let Some(mask) = self.key_mask {
            c.expect_value("key_mask", mask, &[rows, keys], "[B, Tk]")?;
        }
        match self.bias {
            Some(AttentionBias::Relative { table, .. }) => {
                let buckets = *c.weight(table).first().unwrap_or(&0);
                c.expect_weight("bias", table, &[buckets, self.heads], "[buckets, heads]")?;
            }
            Some(AttentionBias::Weight(bias)) => {
                let (q, k) = (c.fixed("queries", Some(&queries))?, c.fixed("keys", Some(&keys))?);
                let heads = *c.weight(bias).first().unwrap_or(&0);
                if heads != 1 && heads != self.heads {
                    return Err(c.error(format!("the bias has {heads} heads")));
                }
                c.expect_weight("bias", bias, &[heads, q, k], "[heads, Tq, Tk]")?;
            }
            None => {}
        }
        if self.rope.is_some() && head % 2 != 0 {
            return Err(c.error(format!("rotary positions need an even head, found {head}")));
        }
        if let Some(norm) = &self.qk_norm {
            c.expect_weight("qk_norm.query", norm.query, &[head], "[head]")?;
            c.expect_weight("qk_norm.key", norm.key, &[head], "[head]")?;
        }
        if let Some(scale) = self.per_dim_scale {
            c.expect_weight("per_dim_scale", scale, &[head], "[head]")?;
        }
        if let Some(groups) = self.groups {
            c.expect_value("groups", groups, &[rows], "[B]")?;
            let plain = !self.causal && self.bias.is_none() && self.rope.is_none();
            if !plain || self.ring.is_some() || queries != keys {
                return Err(c.error("attention over the batch has no time order, bias or ring"));
            }
        }
        if let Some(ring) = &self.ring {
            let capacity = *c.state(ring.keys).first().unwrap_or(&0);
            let fits = c.state(ring.keys) == [capacity, self.keys[0].width]
                && c.state(ring.values) == [capacity, self.values.width]
                && c.state(ring.position) == [1]
                && queries.fixed().is_some_and(|t| t <= capacity)
                && queries == keys
                && self.keys.len() == 1;
            if !fits {
                return Err(c.error("a ring needs slots [capacity, width], [1] and one key set"));
            }
        }
        Ok(())
    }

    fn columns(
        &self,
        c: &ShapeContext<'_>,
        what: &str,
        columns: &Columns,
    ) -> Result<(Dim, Dim), PlanError> {
        let shape = c.expect_rank(what, columns.value, 3, "[B, T, columns]")?;
        let width = c.fixed(what, shape.last())?;
        if columns.start + columns.width > width || columns.width == 0 {
            return Err(c.error(format!(
                "`{what}` take columns {}..{} of {width}",
                columns.start,
                columns.start + columns.width
            )));
        }
        Ok((shape[0], shape[1]))
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        for columns in self.queries.iter_mut().chain(&mut self.keys) {
            visit(&mut columns.value);
        }
        visit(&mut self.values.value);
        self.key_mask.iter_mut().for_each(&mut *visit);
        self.groups.iter_mut().for_each(visit);
    }

    pub(crate) fn visit_weights(&mut self, visit: &mut dyn FnMut(&mut WeightId)) {
        match &mut self.bias {
            Some(AttentionBias::Relative { table, .. }) => visit(table),
            Some(AttentionBias::Weight(bias)) => visit(bias),
            None => {}
        }
        if let Some(norm) = &mut self.qk_norm {
            visit(&mut norm.query);
            visit(&mut norm.key);
        }
        self.per_dim_scale.iter_mut().for_each(visit);
    }
}
