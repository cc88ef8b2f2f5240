//! What a saved prefix is of, and bytes with their checksums.

use std::io::{ErrorKind, Read, Write};
use std::ops::Range;

use crc32fast::Hasher;
use kernels_gpu::abi::PAGE_TOKENS;

use super::SavedError;
use crate::cache::{DType, MAX_HEADS, PagePool};

const MAGIC: [u8; 8] = *b"DEFTKV\r\n";
const VERSION: u32 = 1;
const TOKENS: u64 = PagePool::MAX_PAGES as u64 * 64;

/// What K and V in a file are of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kv_heads: u32,
    pub(crate) head_dim: u32,
    pub(crate) dtype: DType,
    pub(crate) identity: u64,
    /// By layer, whose K and V it reads.
    pub(crate) sources: Vec<u32>,
    /// Ids, from the first token on.
    pub(crate) tokens: Vec<u32>,
}

impl Header {
    /// All its tokens.
    pub(crate) fn all(&self) -> Range<u32> {
        0..self.tokens.len() as u32
    }

    /// Bytes of the header in a file.
    pub(crate) fn bytes(&self) -> u64 {
        let words = self.sources.len() + self.tokens.len();
        8 + 4 * 4 + 8 + 2 * 4 + 4 * words as u64 + 4
    }

    /// Elements of K and V of a token, all layers of their own.
    pub(crate) fn token_elements(&self) -> usize {
        2 * self.row_elements() * self.own_layers().count()
    }

    /// Bytes of K and V of a token, all layers of their own.
    pub(crate) fn token_bytes(&self) -> usize {
        self.token_elements() * self.dtype.bytes()
    }

    /// Bytes of so many tokens' pages in a file.
    pub(crate) fn run_bytes(&self, tokens: u32) -> usize {
        tokens as usize * self.token_bytes() + 4 * tokens.div_ceil(PAGE_TOKENS) as usize
    }

    /// Bytes of the file.
    pub(crate) fn file_bytes(&self) -> usize {
        self.bytes() as usize + self.run_bytes(self.all().end)
    }

    /// Elements of K of a token in one layer.
    pub(crate) fn row_elements(&self) -> usize {
        self.kv_heads as usize * self.head_dim as usize
    }

    /// Layers with K and V of their own.
    pub(crate) fn own_layers(&self) -> impl Iterator<Item = u32> {
        let layers = (0..).zip(&self.sources);
        layers.filter(|&(layer, &source)| layer == source).map(|(layer, _)| layer)
    }

    pub(crate) fn write(&self, out: &mut Checked<&mut dyn Write>) -> Result<(), SavedError> {
        out.write(&MAGIC)?;
        let dtype = dtype_code(self.dtype);
        for word in [VERSION, self.kv_heads, self.head_dim, dtype] {
            out.write(&word.to_le_bytes())?;
        }
        out.write(&self.identity.to_le_bytes())?;
        let counts = [self.sources.len() as u32, self.tokens.len() as u32];
        for &word in counts.iter().chain(&self.sources).chain(&self.tokens) {
            out.write(&word.to_le_bytes())?;
        }
        out.write_sum()
    }

    /// Reads a header and checks it by itself.
    pub(crate) fn read(input: &mut Checked<&mut dyn Read>) -> Result<Self, SavedError> {
        const PART: &str = "header";
        let found: [u8; 8] = input.array(PART)?;
        if found != MAGIC {
            return Err(SavedError::Foreign { found });
        }
        let found = input.word(PART)?;
        if found != VERSION {
            let known = VERSION;
            return Err(SavedError::Version { found, known });
        }
        let [kv_heads, head_dim, dtype] = [input.word(PART)?, input.word(PART)?, input.word(PART)?];
        let identity = u64::from_le_bytes(input.array(PART)?);
        let layers = in_range("layers", input.word(PART)?, u64::from(MAX_HEADS))?;
        let tokens = in_range("tokens", input.word(PART)?, TOKENS)?;
        let header = Self {
            kv_heads,
            head_dim,
            dtype: DType::F32,
            identity,
            sources: input.words(layers, PART)?,
            tokens: input.words(tokens, PART)?,
        };
        input.check_sum(PART)?;
        let codes = [DType::F16, DType::Bf16, DType::F32];
        let known = codes.into_iter().find(|&known| dtype_code(known) == dtype);
        let found = u64::from(dtype);
        let dtype = known.ok_or(SavedError::Range { field: "dtype", found, most: 2 })?;
        Ok(Self { dtype, ..header })
    }

    /// Whether it is of a cache like `cache`, whatever its tokens.
    pub(crate) fn check(&self, cache: &Self) -> Result<(), SavedError> {
        let other = |field, found: String, expected: String| match found == expected {
            true => Ok(()),
            false => Err(SavedError::OtherCache { field, found, expected }),
        };
        let number = |field, found: u32, expected: u32| {
            other(field, found.to_string(), expected.to_string())
        };
        number("kv_heads", self.kv_heads, cache.kv_heads)?;
        number("head_dim", self.head_dim, cache.head_dim)?;
        other("dtype", self.dtype.to_string(), cache.dtype.to_string())?;
        let layers = [self, cache].map(|header| header.sources.len() as u32);
        number("layers", layers[0], layers[1])?;
        let maps = [self, cache].map(|header| format!("{:?}", header.sources));
        let [found, expected] = maps;
        other("layer map", found, expected)?;
        let identities = [self, cache].map(|header| format!("{:#x}", header.identity));
        let [found, expected] = identities;
        other("identity", found, expected)
    }
}

/// The pages of `tokens`, which begin with one.
pub(crate) fn pages(tokens: Range<u32>) -> impl Iterator<Item = Range<u32>> {
    let begins = tokens.clone().step_by(PAGE_TOKENS as usize);
    begins.map(move |begin| begin..(begin + PAGE_TOKENS).min(tokens.end))
}

fn dtype_code(dtype: DType) -> u32 {
    match dtype {
        DType::F16 => 0,
        DType::Bf16 => 1,
        DType::F32 => 2,
    }
}

fn in_range(field: &'static str, found: u32, most: u64) -> Result<usize, SavedError> {
    match u64::from(found) {
        found if (1..=most).contains(&found) => Ok(found as usize),
        found => Err(SavedError::Range { field, found, most }),
    }
}

/// Bytes on their way, and the checksum of those since the last one.
pub(crate) struct Checked<S> {
    stream: S,
    sum: Hasher,
}

impl<S> Checked<S> {
    pub(crate) fn new(stream: S) -> Self {
        let sum = Hasher::new();
        Self { stream, sum }
    }

    /// The checksum of the bytes since the last one.
    fn take_sum(&mut self) -> u32 {
        std::mem::take(&mut self.sum).finalize()
    }
}

impl Checked<&mut dyn Write> {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), SavedError> {
        self.sum.update(bytes);
        self.stream.write_all(bytes).map_err(SavedError::io("write"))
    }

    pub(crate) fn write_sum(&mut self) -> Result<(), SavedError> {
        let sum = self.take_sum().to_le_bytes();
        self.stream.write_all(&sum).map_err(SavedError::io("write"))
    }
}

impl Checked<&mut dyn Read> {
    /// Fills `bytes`; `part` says what of.
    fn read(&mut self, bytes: &mut [u8], part: &'static str) -> Result<(), SavedError> {
        fill(self.stream, bytes, part)?;
        self.sum.update(bytes);
        Ok(())
    }

    /// Reads a page's K and V and compares their checksum.
    pub(crate) fn read_page(&mut self, bytes: &mut [u8]) -> Result<(), SavedError> {
        const PART: &str = "keys and values";
        self.read(bytes, PART)?;
        self.check_sum(PART)
    }

    /// Compares the checksum that comes next with that of `bytes`.
    pub(crate) fn compare(&mut self, bytes: &[u8], part: &'static str) -> Result<(), SavedError> {
        self.sum.update(bytes);
        self.check_sum(part)
    }

    fn check_sum(&mut self, part: &'static str) -> Result<(), SavedError> {
        let expected = self.take_sum();
        let mut found = [0; 4];
        fill(self.stream, &mut found, part)?;
        let found = u32::from_le_bytes(found);
        if found != expected {
            return Err(SavedError::Checksum { part, found, expected });
        }
        Ok(())
    }

    /// Whether all was read.
    pub(crate) fn check_end(&mut self) -> Result<(), SavedError> {
        match fill(self.stream, &mut [0], "end") {
            Err(SavedError::Torn { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(SavedError::TooLong),
        }
    }

    fn array<const N: usize>(&mut self, part: &'static str) -> Result<[u8; N], SavedError> {
        let mut bytes = [0; N];
        self.read(&mut bytes, part)?;
        Ok(bytes)
    }

    fn word(&mut self, part: &'static str) -> Result<u32, SavedError> {
        self.array(part).map(u32::from_le_bytes)
    }

    /// So many words. Memory grows as they come, for their number may be wrong.
    fn words(&mut self, count: usize, part: &'static str) -> Result<Vec<u32>, SavedError> {
        const STEP: usize = 1 << 12;
        let mut words = Vec::new();
        let mut bytes = [0; 4 * STEP];
        while words.len() < count {
            let bytes = &mut bytes[..4 * STEP.min(count - words.len())];
            self.read(bytes, part)?;
            let (chunks, _) = bytes.as_chunks::<4>();
            words.extend(chunks.iter().map(|&chunk| u32::from_le_bytes(chunk)));
        }
        Ok(words)
    }
}

pub(super) fn fill(
    stream: &mut dyn Read,
    bytes: &mut [u8],
    part: &'static str,
) -> Result<(), SavedError> {
    stream.read_exact(bytes).map_err(|source| match source.kind() {
        ErrorKind::UnexpectedEof => SavedError::Torn { part },
        _ => SavedError::io("read")(source),
    })
}
