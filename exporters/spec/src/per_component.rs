//! What is asked for every component of a system, or for each by its name.

use std::collections::BTreeMap;

use crate::ComponentKind;

/// The components of systems.
const COMPONENTS: [ComponentKind; 4] =
    [ComponentKind::Dpar, ComponentKind::Entropy, ComponentKind::Llamagen, ComponentKind::Vq];

/// `WORD`, or `entropy=WORD,dpar=WORD`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PerComponent<T> {
    /// What the components have that are not named.
    every: Option<T>,
    named: BTreeMap<ComponentKind, T>,
}

impl<T: Copy> PerComponent<T> {
    /// Reads either form, each word with `read`; `what` is what a word says, for messages.
    ///
    /// # Errors
    /// In words: those of `read`, what is no component, or one that is named twice.
    pub(crate) fn parse(
        text: &str,
        what: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Self, String> {
        if !text.contains(['=', ',']) {
            return Ok(Self { every: Some(read(text)?), named: BTreeMap::new() });
        }
        let mut named = BTreeMap::new();
        for part in text.split(',') {
            let (component, word) =
                part.split_once('=').ok_or_else(|| format!("`{part}` is no COMPONENT={what}"))?;
            let known = COMPONENTS.into_iter().find(|k| k.name() == component);
            let component =
                known.ok_or_else(|| format!("`{component}` is none of dpar, entropy, llamagen and vq"))?;
            if named.insert(component, read(word)?).is_some() {
                return Err(format!("{} is named twice", component.name()));
            }
        }
        Ok(Self { every: None, named })
    }

    /// What a component is to have, where that is said.
    pub(crate) fn of(&self, component: ComponentKind) -> Option<T> {
        self.named.get(&component).copied().or(self.every)
    }

    /// What a component is to have that is named.
    pub(crate) fn named(&self, component: ComponentKind) -> Option<T> {
        self.named.get(&component).copied()
    }

    /// Everything that is asked for.
    pub(crate) fn values(&self) -> impl Iterator<Item = T> {
        self.every.iter().chain(self.named.values()).copied()
    }

    /// A component that is named, and that a system of these components does not have.
    pub(crate) fn missing(&self, of: &[ComponentKind]) -> Option<ComponentKind> {
        self.named.keys().find(|named| !of.contains(named)).copied()
    }

    /// The same with other values.
    pub(crate) fn map(self, to: impl Fn(T) -> T) -> Self {
        Self {
            every: self.every.map(&to),
            named: self.named.into_iter().map(|(kind, value)| (kind, to(value))).collect(),
        }
    }
}
