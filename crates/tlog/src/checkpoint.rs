//! What a log signs: its size and root at a moment (C2SP tlog-checkpoint).

use std::fmt;
use std::str::FromStr;

use crate::note::{Note, SigningKey};
use crate::tree::check_size;
use crate::{Error, Hash, decimal};

/// The size of a tree and its root: all there is to remember of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeHead {
    /// The number of leaves.
    pub size: u64,
    /// The root hash.
    pub root: Hash,
}

/// The text of a checkpoint: whose log, how long, with what root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The name of the log, unique in the world; never empty.
    pub origin: String,
    /// Its size and root.
    pub head: TreeHead,
    /// Further lines, opaque; none is empty. The standard advises against them.
    pub extensions: Vec<String>,
}

impl Checkpoint {
    /// A checkpoint without extension lines.
    pub fn new(origin: &str, size: u64, root: Hash) -> Self {
        Checkpoint { origin: origin.to_owned(), head: TreeHead { size, root }, extensions: Vec::new() }
    }

    /// The signed note of this checkpoint.
    ///
    /// # Errors
    /// An origin or an extension that is empty or not one line.
    pub fn sign(&self, key: &SigningKey) -> Result<Note, Error> {
        let text = self.to_string();
        // Written text that reads back otherwise would put words in the signer's mouth.
        if text.parse::<Checkpoint>()? != *self {
            return Err(Error::malformed("checkpoint", "an origin or extension has a line break"));
        }
        let mut note = Note::new(&text)?;
        note.sign(key)?;
        Ok(note)
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n{}", self.origin, self.head.size, self.head.root)?;
        self.extensions.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl FromStr for Checkpoint {
    type Err = Error;

    /// Reads the text of a note. Verify the note first.
    fn from_str(text: &str) -> Result<Self, Error> {
        let malformed = |why: &str| Error::malformed("checkpoint", why);
        let mut lines = text.strip_suffix('\n').ok_or_else(|| malformed("no newline at the end"))?.split('\n');
        let origin = lines.next().filter(|line| !line.is_empty()).ok_or_else(|| malformed("empty origin"))?;
        let size = lines.next().and_then(decimal).ok_or_else(|| malformed("second line is not a size"))?;
        check_size(size)?;
        let root = lines.next().ok_or_else(|| malformed("no root hash"))?.parse()?;
        let extensions: Vec<_> = lines.map(str::to_owned).collect();
        if extensions.iter().any(String::is_empty) {
            return Err(malformed("empty line"));
        }
        Ok(Checkpoint { origin: origin.to_owned(), head: TreeHead { size, root }, extensions })
    }
}
