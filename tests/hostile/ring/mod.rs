//! What may stand in a split ring.

mod chains;
