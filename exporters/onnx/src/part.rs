//! A component in its system.

use std::ops::Deref;

use dpar_export_spec::SystemSpec;

/// The sizes of a component, and the system that has those which it shares with others.
#[derive(Debug)]
pub(crate) struct Part<'a, T> {
    own: &'a T,
    pub(crate) system: &'a SystemSpec,
}

impl<'a, T> Part<'a, T> {
    pub(crate) fn new(own: &'a T, system: &'a SystemSpec) -> Self {
        Self { own, system }
    }
}

impl<T> Clone for Part<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Part<'_, T> {}

impl<T> Deref for Part<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.own
    }
}
