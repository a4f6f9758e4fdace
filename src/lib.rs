//! dpar-export
