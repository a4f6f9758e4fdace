//! A component in its system.

use std::ops::Deref;

use dpar_export_spec::SystemSpec;

/// The sizes of a component, and the system that has those which it shares with others.
#[derive(Debug)]
pub(crate) struct InSystem<'a, T> {
    own: &'a T,
    pub(crate) system: &'a SystemSpec,
}

impl<'a, T> InSystem<'a, T> {
    pub(crate) fn new(own: &'a T, system: &'a SystemSpec) -> Self {
        Self { own, system }
    }
}

impl<T> Clone for InSystem<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for InSystem<'_, T> {}

impl<T> Deref for InSystem<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.own
    }
}
