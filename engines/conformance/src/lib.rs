//! One conformance suite that every engine runs.
