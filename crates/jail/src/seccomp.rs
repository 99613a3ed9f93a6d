//! The system call filter: `cell.syscalls` compiled to a kernel program.
//!
//! A call that is not listed, a listed one whose condition fails, and any call of another architecture (32-bit `int 0x80`; x32 has other
//! numbers) kills the whole process at once: there is no error code to try again on.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};

/// The list as data; each odd line says who needs it.
const LIST: &str = include_str!("cell.syscalls");

/// Position of `prot` among the arguments of both `mmap` and `mprotect`.
const PROT_ARGUMENT: u8 = 2;

/// Compiles the list for this machine; an error names the line.
pub(crate) fn program() -> Result<BpfProgram, String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
    let mut rules = BTreeMap::new();
    for entry in entries() {
        let (name, no_exec) = entry?;
        let number = number(name).ok_or_else(|| format!("system call `{name}` has no number here"))?;
        let conditions = if no_exec { vec![without_exec().map_err(|error| error.to_string())?] } else { Vec::new() };
        rules.insert(number, conditions);
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

fn without_exec() -> Result<SeccompRule, seccompiler::BackendError> {
    let exec = libc::PROT_EXEC as u64;
    SeccompRule::new(vec![SeccompCondition::new(PROT_ARGUMENT, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(exec), 0)?])
}

/// The list's lines as (name, whether executable memory is excluded).
fn entries() -> impl Iterator<Item = Result<(&'static str, bool), String>> {
    LIST.lines().map(|line| line.split_once('#').map_or(line, |(rule, _)| rule)).filter(|rule| !rule.trim().is_empty()).map(|rule| {
        let mut words = rule.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(name), None, None) => Ok((name, false)),
            (Some(name), Some("no-exec"), None) => Ok((name, true)),
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
        "close_range" => libc::SYS_close_range,
        "exit_group" => libc::SYS_exit_group,
        "rt_sigreturn" => libc::SYS_rt_sigreturn,
        "getrandom" => libc::SYS_getrandom,
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
            ("brk", false),
            ("close", false),
            ("close_range", false),
            ("exit_group", false),
            ("futex", false),
            ("getrandom", false),
            ("madvise", false),
            ("mmap", true),
            ("mprotect", true),
            ("mremap", false),
            ("munmap", false),
            ("recvmsg", false),
            ("rt_sigreturn", false),
            ("sendmsg", false),
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
        assert!(program().unwrap().len() > 14);
    }
}
