//! BinPack: the node with the least left over, so that large holes stay whole for large tasks.

use super::{Fill, Score, StateView};

pub(super) struct BinPack;

impl Score for BinPack {
    fn score(&self, state: &StateView<'_>, _: &[(u32, i64)]) -> i64 {
        -state.leftover
    }
    fn fill(&self) -> Fill {
        Fill::Deep
    }
    fn is_leftover(&self) -> bool {
        true
    }
}
