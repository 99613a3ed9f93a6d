//! The system call filter: `cell.syscalls` compiled to a kernel program.
//!
//! A call that is not listed, a listed one whose condition fails, and any call of another architecture (32-bit `int 0x80`; x32 has other
//! numbers) kills the whole process at once: there is no error code to try again on.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};

/// The list as data; each odd line says who needs it.
const LIST: &str = include_str!("cell.syscalls");

/// What an argument must be, beyond the call being listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Condition {
    /// Anything goes.
    None,
    /// `mmap` and `mprotect`: no executable memory.
    NoExec,
    /// `fcntl`: only the question for a descriptor's flags.
    GetFlags,
    /// Anything goes, under gVisor's kernel; under the host's the call is not listed.
    Gvisor,
}

impl Condition {
    fn from_word(word: &str) -> Option<Self> {
        match word {
            "no-exec" => Some(Self::NoExec),
            "get-flags" => Some(Self::GetFlags),
            "gvisor" => Some(Self::Gvisor),
            _ => None,
        }
    }

    /// No rule at all means that the call is allowed whatever its arguments.
    fn rules(self) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let (argument, length, operator, value) = match self {
            Self::None | Self::Gvisor => return Ok(Vec::new()),
            Self::NoExec => (2, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0),
            Self::GetFlags => (1, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, libc::F_GETFD as u64),
        };
        Ok(vec![SeccompRule::new(vec![SeccompCondition::new(argument, length, operator, value)?])?])
    }
}

/// The kernel that a filter is loaded into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    Host,
    Gvisor,
}

/// Compiles the list for this machine; an error names the line.
pub(crate) fn program(kernel: Kernel) -> Result<BpfProgram, String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
    let mut rules = BTreeMap::new();
    for entry in entries() {
        let (name, condition) = entry?;
        if condition == Condition::Gvisor && kernel == Kernel::Host {
            continue;
        }
        let number = number(name).ok_or_else(|| format!("system call `{name}` has no number here"))?;
        rules.insert(number, condition.rules().map_err(|error| error.to_string())?);
    }
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)
        .and_then(BpfProgram::try_from)
        .map_err(|error| error.to_string())
}

/// Locks the calling thread; from here on only the list is left.
pub(crate) fn lock(program: &BpfProgram) -> std::io::Result<()> {
    seccompiler::apply_filter(program).map_err(|error| match error {
        seccompiler::Error::Prctl(source) | seccompiler::Error::Seccomp(source) => source,
        _ => std::io::ErrorKind::InvalidInput.into(),
    })
}

/// The list's lines as name and condition.
fn entries() -> impl Iterator<Item = Result<(&'static str, Condition), String>> {
    LIST.lines().map(|line| line.split_once('#').map_or(line, |(rule, _)| rule)).filter(|rule| !rule.trim().is_empty()).map(|rule| {
        let mut words = rule.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(name), None, None) => Ok((name, Condition::None)),
            (Some(name), Some(word), None) => {
                Condition::from_word(word).map(|condition| (name, condition)).ok_or_else(|| format!("`{word}` is no condition"))
            }
            _ => Err(format!("cannot read the line `{rule}`")),
        }
    })
}

fn number(name: &str) -> Option<i64> {
    Some(match name {
        "recvmsg" => libc::SYS_recvmsg,
        "sendmsg" => libc::SYS_sendmsg,
        "mmap" => libc::SYS_mmap,
        "mprotect" => libc::SYS_mprotect,
        "munmap" => libc::SYS_munmap,
        "brk" => libc::SYS_brk,
        "mremap" => libc::SYS_mremap,
        "madvise" => libc::SYS_madvise,
        "futex" => libc::SYS_futex,
        "close" => libc::SYS_close,
        "fcntl" => libc::SYS_fcntl,
        "close_range" => libc::SYS_close_range,
        "exit_group" => libc::SYS_exit_group,
        "rt_sigreturn" => libc::SYS_rt_sigreturn,
        "getrandom" => libc::SYS_getrandom,
        "clock_gettime" => libc::SYS_clock_gettime,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The documented set, written a second time on purpose: widening the list must be done in two places.
    #[test]
    fn the_list_is_exactly_the_documented_set() {
        let mut listed: Vec<_> = entries().map(Result::unwrap).collect();
        listed.sort_unstable();
        let documented = [
            ("brk", Condition::None),
            ("clock_gettime", Condition::Gvisor),
            ("close", Condition::None),
            ("close_range", Condition::None),
            ("exit_group", Condition::None),
            ("fcntl", Condition::GetFlags),
            ("futex", Condition::None),
            ("getrandom", Condition::None),
            ("madvise", Condition::None),
            ("mmap", Condition::NoExec),
            ("mprotect", Condition::NoExec),
            ("mremap", Condition::None),
            ("munmap", Condition::None),
            ("recvmsg", Condition::None),
            ("rt_sigreturn", Condition::None),
            ("sendmsg", Condition::None),
        ];
        assert_eq!(listed, documented);
    }

    #[test]
    fn every_line_says_why() {
        for line in LIST.lines().filter(|line| !line.is_empty()) {
            assert!(line.split_once('#').is_some_and(|(_, why)| why.len() > 5), "no reason in `{line}`");
        }
    }

    #[test]
    fn it_compiles() {
        let (host, gvisor) = (program(Kernel::Host).unwrap(), program(Kernel::Gvisor).unwrap());
        assert!(host.len() > 14 && gvisor.len() > host.len(), "the clock is asked under gVisor only");
    }
}
