//! The fork server: a program that has loaded its engine once and is forked for each cell.
//!
//! ```no_run
//! use jail::{Floor, Limits, zygote::Launcher};
//! # fn main() -> Result<(), jail::JailError> {
//! // The service:
//! let launcher = Launcher::start("/usr/lib/insula/insula-cell".as_ref(), &[], &[], Floor::Strict)?;
//! println!("{}", launcher.report());
//! let limits = Limits { memory_bytes: 256 << 20, cpu_percent: 100, cpu_weight: 1, cpu_seconds_max: None, descriptors_max: 32 };
//! let mut cell = launcher.spawn(&limits)?;
//! let socket = cell.take_socket();
//! cell.on_exit(|exit| println!("{exit:?}"));
//! # Ok(())
//! # }
//! ```
//!
//! ```no_run
//! // The program, after it has loaded and warmed its engine, still with one thread:
//! let control = jail::zygote::control().expect("started by the launcher");
//! jail::zygote::serve(control, |socket| {
//!     let mut request = [0; 4096];
//!     while let Ok((bytes @ 1.., _)) = jail::stream::recv(std::os::fd::AsFd::as_fd(&socket), &mut request) {
//!         if jail::stream::send(std::os::fd::AsFd::as_fd(&socket), &request[..bytes], None).is_err() {
//!             break;
//!         }
//!     }
//! })
//! ```
//!
//! Forks of one zygote share its address space layout, so a zygote is replaced after [`FORKS_PER_ZYGOTE_MAX`] forks; the old one lives until its
//! last cell is gone. A zygote that dies is replaced at the next spawn, at first at once, then with a growing pause.

mod cell;
pub(crate) mod control;
mod launcher;
mod serve;

pub use cell::{Cell, Exit, Usage};
pub(crate) use control::DESCRIPTORS_MAX;
pub use launcher::{FORKS_PER_ZYGOTE_MAX, Launcher};
pub(crate) use serve::keep;
pub use serve::{control, serve};
