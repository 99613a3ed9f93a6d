//! For how long a thread wants a core at a time.
//!
//! The kernel's scheduler gives everybody the same share whatever they want, but who wants the core for a shorter time gets it sooner: it takes
//! it at once from a thread that wants it for longer, where it would otherwise wait up to a tick of the clock, four milliseconds (EEVDF, Linux
//! 6.6; the time is read from `sched_runtime` from 6.12 on, and an older kernel does not look at it). So what answers short questions is kept
//! from nobody's long ones by them, and takes nothing from them that it would not have had.

use std::io;
use std::mem::size_of;
use std::time::Duration;

/// The shortest time that the kernel knows.
const SHORT: Duration = Duration::from_micros(100);

/// For how long a thread wants a core at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turns {
    /// As briefly as the kernel knows.
    Short,
    /// As the kernel thinks best.
    Usual,
}

/// `sched_attr` of the kernel, first version.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Sets the turns of this thread, and of those that it will make.
///
/// # Errors
/// The kernel's, where it does not let the caller.
pub fn take_turns(turns: Turns) -> io::Result<()> {
    set(0, turns)
}

/// What the kernel knows of a thread; 0 is this one.
fn get(thread: i32) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    let bytes = u32::try_from(size_of::<Attributes>()).unwrap_or(0);
    // SAFETY: the kernel writes at most `bytes` bytes into the structure, which is that long and valid whatever it holds.
    if unsafe { libc::syscall(libc::SYS_sched_getattr, thread, &raw mut attributes, bytes, 0_u32) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(Attributes { size: bytes, ..attributes })
}

/// Sets the turns of a thread; 0 is this one.
pub(crate) fn set(thread: i32, turns: Turns) -> io::Result<()> {
    let mut attributes = get(thread)?;
    attributes.runtime = match turns {
        Turns::Short => u64::try_from(SHORT.as_nanos()).unwrap_or(0),
        Turns::Usual => 0,
    };
    // SAFETY: the kernel only reads the structure, which says how long it is.
    if unsafe { libc::syscall(libc::SYS_sched_setattr, thread, &raw const attributes, 0_u32) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> u64 {
        get(0).unwrap().runtime
    }

    #[test]
    fn turns_are_shortened_inherited_and_given_back() {
        std::thread::spawn(|| {
            let usual = runtime();
            take_turns(Turns::Short).unwrap();
            let short = runtime();
            // Linux before 6.12 tells 0 whatever is set.
            assert!(short == 100_000 || short == 0, "{short}");
            assert_eq!(std::thread::spawn(runtime).join().unwrap(), short);
            take_turns(Turns::Usual).unwrap();
            assert_eq!(runtime(), usual);
        })
        .join()
        .unwrap();
    }
}
