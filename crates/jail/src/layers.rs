//! Which layers of the jail are wanted. Everything, always: the other values exist for tests, which must be able to see a wall missing.
//!
//! No configuration, environment variable or build flag reaches this type; a caller has to pass it by value to
//! [`Launcher::start_weakened`](crate::zygote::Launcher::start_weakened).

/// One flag for each wall that can be left out by a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the name of a layer")]
pub struct Layers {
    pub namespaces: bool,
    pub own_uid: bool,
    pub empty_root: bool,
    pub no_capabilities: bool,
    pub no_new_privileges: bool,
    pub landlock: bool,
    pub seccomp: bool,
    pub cgroup: bool,
    pub rlimits: bool,
    pub not_dumpable: bool,
    pub close_descriptors: bool,
}

impl Layers {
    /// Every wall up.
    pub const ALL: Self = Self {
        namespaces: true,
        own_uid: true,
        empty_root: true,
        no_capabilities: true,
        no_new_privileges: true,
        landlock: true,
        seccomp: true,
        cgroup: true,
        rlimits: true,
        not_dumpable: true,
        close_descriptors: true,
    };

    /// What is ours around a sandbox with a kernel of its own; `runsc` and the guest bring the other walls.
    pub(crate) const AROUND: Self = Self { landlock: false, seccomp: false, rlimits: false, not_dumpable: false, ..Self::ALL };

    /// No wall at all.
    pub const NONE: Self = Self {
        namespaces: false,
        own_uid: false,
        empty_root: false,
        no_capabilities: false,
        no_new_privileges: false,
        landlock: false,
        seccomp: false,
        cgroup: false,
        rlimits: false,
        not_dumpable: false,
        close_descriptors: false,
    };

    pub(crate) fn bits(self) -> u32 {
        self.list().iter().enumerate().fold(0, |bits, (place, on)| bits | (u32::from(*on) << place))
    }

    pub(crate) fn from_bits(bits: u32) -> Self {
        let on = |place: u32| bits >> place & 1 == 1;
        Self {
            namespaces: on(0),
            own_uid: on(1),
            empty_root: on(2),
            no_capabilities: on(3),
            no_new_privileges: on(4),
            landlock: on(5),
            seccomp: on(6),
            cgroup: on(7),
            rlimits: on(8),
            not_dumpable: on(9),
            close_descriptors: on(10),
        }
    }

    fn list(self) -> [bool; 11] {
        [
            self.namespaces,
            self.own_uid,
            self.empty_root,
            self.no_capabilities,
            self.no_new_privileges,
            self.landlock,
            self.seccomp,
            self.cgroup,
            self.rlimits,
            self.not_dumpable,
            self.close_descriptors,
        ]
    }
}

impl Default for Layers {
    fn default() -> Self {
        Self::ALL
    }
}

#[cfg(test)]
mod tests {
    use super::Layers;

    #[test]
    fn bits_survive_the_journey() {
        assert_eq!(Layers::from_bits(Layers::ALL.bits()), Layers::ALL);
        for place in 0..11 {
            let bits = Layers::ALL.bits() & !(1 << place);
            assert_ne!(Layers::from_bits(bits), Layers::ALL);
            assert_eq!(Layers::from_bits(bits).bits(), bits);
        }
    }
}
