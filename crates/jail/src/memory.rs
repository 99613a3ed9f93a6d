//! Memory files: written once, sealed, handed over by descriptor, mapped read-only.
//!
//! A model travels from the service to a cell this way: no copy through a socket, no name in a file system, and after sealing neither side can
//! change or shorten what the other reads. A cell after lock-down can only map (`mmap` is all it has), so [`Mapped::received`] takes the
//! length from the message that brought the descriptor; [`SealedFile::from_fd`] asks the kernel for seals and length and is for the service.

use std::{
    fs::File,
    io::{self, Write},
    ops::Deref,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create},
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap},
};

/// What no one can undo: shrinking, growing, writing, and adding seals.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE).union(SealFlags::SEAL);

/// An anonymous file in memory that can no longer change.
#[derive(Debug)]
pub struct SealedFile {
    fd: OwnedFd,
    bytes: u64,
}

impl SealedFile {
    /// A sealed copy of `bytes`.
    pub fn create(bytes: &[u8]) -> io::Result<Self> {
        let mut writer = Self::writer(bytes.len() as u64)?;
        writer.write_all(bytes)?;
        writer.seal()
    }

    /// A file to be written piece by piece; `bytes_hint` is the expected length in bytes, 0 when unknown.
    pub fn writer(bytes_hint: u64) -> io::Result<Writer> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = match memfd_create("insula", flags | MemfdFlags::NOEXEC_SEAL) {
            Err(rustix::io::Errno::INVAL) => memfd_create("insula", flags)?,
            other => other?,
        };
        ftruncate(&fd, bytes_hint)?;
        Ok(Writer { file: File::from(fd), bytes: 0 })
    }

    /// Takes a descriptor that somebody sent, if it is sealed against writing, growing and shrinking. Not for a cell after lock-down.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let seals = fcntl_get_seals(&fd)?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the memory file is not sealed"));
        }
        let bytes = u64::try_from(fstat(&fd)?.st_size).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self { fd, bytes })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The whole content, read-only.
    pub fn map(&self) -> io::Result<Mapped> {
        Mapped::received(self.fd.as_fd(), self.bytes)
    }

    /// The descriptor, to be sent.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsFd for SealedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A memory file that is still being written.
#[derive(Debug)]
pub struct Writer {
    file: File,
    bytes: u64,
}

impl Writer {
    /// Cuts the file to what was written and seals it.
    pub fn seal(self) -> io::Result<SealedFile> {
        let fd = OwnedFd::from(self.file);
        ftruncate(&fd, self.bytes)?;
        fcntl_add_seals(&fd, SEALS)?;
        Ok(SealedFile { fd, bytes: self.bytes })
    }
}

impl Write for Writer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buf)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A read-only private mapping, unmapped when dropped.
#[derive(Debug)]
pub struct Mapped {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is read-only, its file is sealed, and nobody else holds the address: any thread may read and unmap it.
unsafe impl Send for Mapped {}
// SAFETY: see above; a shared reference can only read.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps the first `bytes` bytes of a memory file that a *trusted* sender sealed, by `mmap` alone.
    ///
    /// The service is trusted by its cells; the other way round use [`SealedFile::from_fd`], because a file shorter than announced is a
    /// fatal signal at the first read past its end.
    pub fn received(fd: BorrowedFd<'_>, bytes: u64) -> io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        if bytes == 0 {
            return Ok(Self { start: NonNull::dangling(), bytes });
        }
        // SAFETY: the kernel picks the address, so no existing memory is touched.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::PRIVATE, fd, 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes })
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is mapped readable for `bytes` bytes until drop (or dangling and empty), and the seals forbid any change.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: this is exactly the range `mmap` returned, and no slice of it outlives `self`.
            let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
        }
    }
}

/// Bytes of a huge page.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Blocks that the allocator may map one by one: its own default.
const MAPPED_BLOCKS_MAX: i32 = 65_536;
/// From this size on it maps a block by itself again after a [`Room`], and gives it back at once.
const MAPPED_BLOCK_BYTES: i32 = 4 << 20;
/// Free memory at the end of the heap that it keeps after a [`Room`].
const HEAP_KEPT_BYTES: i32 = 8 << 20;

/// Room on the heap in huge pages, for work that is about to allocate a lot and touch all of it.
///
/// A process that is young touches every page for the first time, and at 4 KiB a page that costs more than what it writes there: of the time in
/// which a network of 58 MB is loaded, 40 %. While a room exists the allocator takes also the largest blocks from the heap, where the room is,
/// and keeps what is freed. Dropping it ends both; memory that was not used goes back with the next [`trim`].
///
/// Where the system has no huge pages to give, or the process may not have so much memory, nothing is different but for the time.
#[derive(Debug)]
pub struct Room {
    start: *mut libc::c_void,
    bytes: usize,
}

impl Room {
    /// Room for `bytes`. Takes address space only: a page is there when it is first written.
    #[must_use]
    pub fn make(bytes: usize) -> Self {
        set_allocator(0, i32::MAX, MAPPED_BLOCK_BYTES);
        // SAFETY: `malloc` has no preconditions, and what it returns is given back below, once, unread and unwritten.
        let block = unsafe { libc::malloc(bytes) };
        let bytes = if block.is_null() { 0 } else { bytes };
        let skipped = block.cast::<u8>().align_offset(HUGE_PAGE_BYTES).min(bytes);
        let room = Self { start: block.wrapping_byte_add(skipped), bytes: (bytes - skipped) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES };
        room.advise(Advice::LinuxHugepage);
        // SAFETY: `block` is what `malloc` returned, or null, which `free` ignores.
        unsafe { libc::free(block) };
        room
    }

    /// Best effort: a kernel without huge pages refuses, and a range that the heap has left is no longer there.
    fn advise(&self, advice: Advice) {
        // SAFETY: neither of the two pieces of advice that are given here changes what the memory holds, whoever has it by now.
        let _ = unsafe { madvise(self.start, self.bytes, advice) };
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // What is there stays as it is, but nothing makes huge pages of small ones behind our back: that would be memory nobody asked for.
        self.advise(Advice::LinuxNoHugepage);
        set_allocator(MAPPED_BLOCKS_MAX, HEAP_KEPT_BYTES, MAPPED_BLOCK_BYTES);
    }
}

fn set_allocator(mapped_blocks_max: i32, heap_kept_bytes: i32, mapped_block_bytes: i32) {
    let parameters =
        [(libc::M_MMAP_MAX, mapped_blocks_max), (libc::M_TRIM_THRESHOLD, heap_kept_bytes), (libc::M_MMAP_THRESHOLD, mapped_block_bytes)];
    for (parameter, value) in parameters {
        // SAFETY: `mallopt` sets a number of the allocator under its lock and refuses what it does not know.
        let _ = unsafe { libc::mallopt(parameter, value) };
    }
}

/// Bytes that this process's allocator has handed out and not got back. Makes no system call, so that it works after lock-down.
#[must_use]
pub fn heap_bytes() -> u64 {
    // SAFETY: `mallinfo2` reads the allocator's counters and returns them by value; it has no preconditions.
    let info = unsafe { libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as u64
}

/// Gives free memory of the allocator back to the system (`madvise`, `brk`), as far as it can.
pub fn trim() {
    // SAFETY: `malloc_trim` only touches free memory of the allocator; it has no preconditions.
    let _ = unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_survives_and_nothing_can_change_it() {
        let sealed = SealedFile::create(b"weights").unwrap();
        assert_eq!(&*sealed.map().unwrap(), b"weights");
        let mut again = File::from(sealed.as_fd().try_clone_to_owned().unwrap());
        assert_eq!(again.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(again.set_len(3).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(again.set_len(300).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert!(fcntl_add_seals(&again, SealFlags::FUTURE_WRITE).is_err());
    }

    #[test]
    fn a_wrong_hint_does_not_show() {
        for hint in [0, 3, 4096] {
            let mut writer = SealedFile::writer(hint).unwrap();
            writer.write_all(b"abc").unwrap();
            writer.write_all(b"defg").unwrap();
            let sealed = writer.seal().unwrap();
            assert_eq!((sealed.len(), &*sealed.map().unwrap()), (7, &b"abcdefg"[..]), "hint {hint}");
        }
    }

    #[test]
    fn the_heap_is_measured() {
        let before = heap_bytes();
        let held = std::hint::black_box(vec![1u8; 3 << 20]);
        assert!(heap_bytes() >= before + (3 << 20));
        drop(held);
        trim();
        assert!(heap_bytes() < before + (3 << 20));
    }

    #[test]
    fn a_room_takes_nothing_by_itself() {
        let before = heap_bytes();
        let room = Room::make(96 << 20);
        assert!(heap_bytes() < before + (1 << 20));
        let held = std::hint::black_box(vec![1u8; 48 << 20]);
        drop(room);
        assert!(held.iter().all(|byte| *byte == 1));
        drop(held);
        trim();
        assert!(heap_bytes() < before + (1 << 20));
    }

    #[test]
    fn a_room_that_cannot_be_had_is_none() {
        let room = Room::make(usize::MAX >> 1);
        assert_eq!(std::hint::black_box(vec![7u8; 1 << 20])[9], 7);
        drop(room);
    }

    #[test]
    fn empty_is_a_file_too() {
        let sealed = SealedFile::create(b"").unwrap();
        assert!(sealed.is_empty());
        assert!(sealed.map().unwrap().is_empty());
    }

    #[test]
    fn only_sealed_files_are_taken() {
        let sealed = SealedFile::create(b"weights").unwrap();
        let taken = SealedFile::from_fd(sealed.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(taken.len(), 7);
        let open = memfd_create("open", MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(SealedFile::from_fd(open.try_clone().unwrap()).is_err());
        fcntl_add_seals(&open, SealFlags::WRITE).unwrap();
        assert!(SealedFile::from_fd(open).is_err());
        assert!(SealedFile::from_fd(tempfile::tempfile().unwrap().into()).is_err());
    }
}
