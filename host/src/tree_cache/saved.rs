//! Sealed prefixes to files and back.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};

use super::{CacheError, TreeCache};
use crate::cache::{DType, KvElement, PagedOrder, PagedTable};
use crate::prefix::Opened;
use crate::saved::{Aside, Checked, Header, SavedError, pages};
use crate::tree::NodeKey;

/// Tokens of a layer that are copied from the device at a time, a multiple of a page's.
const EXPORT_TOKENS: u32 = 256;

/// Bytes of a read or a write.
const BATCH_BYTES: usize = 2 << 20;

impl TreeCache {
    /// Writes the sealed path to `node`, ids with K and V, to the file at `path`: so that a long system prompt survives
    /// the process. `node` is a sealed node, or the empty leaf that [`TreeCache::seal`] gave. The file is written
    /// beside `path` first and is there whole or not at all; one that was there is replaced. Pages of a format
    /// ([`TreeCache::seal_as`]) are written decoded, as attention reads them.
    ///
    /// # Errors
    /// [`PrefixError::NotIndexed`](crate::prefix::PrefixError::NotIndexed), [`CacheError::Saved`], or the device's.
    pub fn save(&mut self, node: NodeKey, path: &Path) -> Result<(), CacheError> {
        let (aside, file) = Aside::create(path)?;
        let mut out = BufWriter::with_capacity(BATCH_BYTES, &file);
        self.save_to(node, &mut out)?;
        out.flush().map_err(SavedError::io("write"))?;
        drop(out);
        Ok(aside.keep(&file)?)
    }

    /// As [`TreeCache::save`], to anything that takes bytes.
    ///
    /// # Errors
    /// As [`TreeCache::save`].
    pub fn save_to(&mut self, node: NodeKey, out: &mut dyn Write) -> Result<(), CacheError> {
        let sealed = match (self.prefix.contains(node), self.forest.length(node)?) {
            (false, 0) => self.forest.parent(node)?.unwrap_or(node),
            _ => node,
        };
        let header = self.header(self.prefix.path_tokens(sealed)?);
        let mut out = Checked::new(out);
        header.write(&mut out)?;
        match header.dtype {
            DType::F16 => self.write_pages::<f16>(sealed, &header, &mut out),
            DType::Bf16 => self.write_pages::<bf16>(sealed, &header, &mut out),
            DType::F32 => self.write_pages::<f32>(sealed, &header, &mut out),
        }
    }

    /// Reads the file at `path` that [`TreeCache::save`] wrote for a cache like this one, seals its prefix under `salt`,
    /// and returns an empty leaf below it, as [`TreeCache::seal`] does. What the cache holds of it already is not
    /// written again. The pages are native, unless [`CacheBuilder::sealed_format`](crate::CacheBuilder::sealed_format) says otherwise.
    ///
    /// All bytes are checked before anybody can find what it is of. A file that is torn, changed or of another cache is
    /// refused by name; then the cache holds what it held, and the prompt has to be computed.
    ///
    /// # Errors
    /// [`CacheError::Saved`], those of [`TreeCache::open`] and [`TreeCache::extend`] (too few pages), or the device's.
    pub fn load(&mut self, path: &Path, salt: u64) -> Result<NodeKey, CacheError> {
        let file = File::open(path).map_err(|source| SavedError::File {
            action: "open",
            path: path.to_owned(),
            source,
        })?;
        self.load_from(&mut BufReader::with_capacity(BATCH_BYTES, file), salt)
    }

    /// As [`TreeCache::load`], from anything that gives bytes.
    ///
    /// # Errors
    /// As [`TreeCache::load`].
    pub fn load_from(&mut self, input: &mut dyn Read, salt: u64) -> Result<NodeKey, CacheError> {
        let mut input = Checked::new(input);
        let header = Header::read(&mut input)?;
        header.check(&self.header(Vec::new()))?;
        let opened = self.open(&header.tokens, salt)?;
        let filled = self.fill_from(opened, &header, &mut input);
        let sealed = filled.and_then(|()| self.seal(opened.node, &header.tokens, salt));
        if sealed.is_err() {
            self.prune(opened.node)?;
        }
        sealed
    }

    /// What a file of `tokens` says of this cache.
    pub(super) fn header(&self, tokens: Vec<u32>) -> Header {
        let config = &self.config;
        Header {
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            dtype: config.dtype,
            identity: self.identity,
            sources: match &self.layer_map {
                Some(map) => map.sources().to_vec(),
                None => (0..config.layers).collect(),
            },
            tokens,
        }
    }

    fn write_pages<T: KvElement>(
        &mut self,
        node: NodeKey,
        header: &Header,
        out: &mut Checked<&mut dyn Write>,
    ) -> Result<(), CacheError> {
        let all = header.all();
        for begin in all.clone().step_by(EXPORT_TOKENS as usize) {
            // Several pages of a layer at a time, for a device is slow to begin.
            let group = begin..all.end.min(begin + EXPORT_TOKENS);
            let mut layers = Vec::new();
            for layer in header.own_layers() {
                let elements = group.len() * header.row_elements();
                let mut rows = [(); 2].map(|()| vec![T::default(); elements]);
                let [k, v] = &mut rows;
                self.export(layer, node, group.clone(), &whole(&group), k, v)?;
                layers.push(rows);
            }
            for tokens in pages(group) {
                let row = header.row_elements();
                let rows =
                    (tokens.start - begin) as usize * row..(tokens.end - begin) as usize * row;
                for part in layers.iter().flatten() {
                    out.write(bytemuck::cast_slice(&part[rows.clone()]))?;
                }
                out.write_sum()?;
            }
        }
        Ok(())
    }

    /// Gives an opened leaf the tokens that it lacks.
    fn fill_from(
        &mut self,
        opened: Opened,
        header: &Header,
        input: &mut Checked<&mut dyn Read>,
    ) -> Result<(), CacheError> {
        let rest = header.tokens.len() as u32 - opened.matched;
        if rest > 0 {
            self.extend(&[opened.node], rest)?;
        }
        match header.dtype {
            DType::F16 => self.read_pages::<f16>(opened, header, input)?,
            DType::Bf16 => self.read_pages::<bf16>(opened, header, input)?,
            DType::F32 => self.read_pages::<f32>(opened, header, input)?,
        }
        Ok(input.check_end()?)
    }

    fn read_pages<T: KvElement>(
        &mut self,
        opened: Opened,
        header: &Header,
        input: &mut Checked<&mut dyn Read>,
    ) -> Result<(), CacheError> {
        for tokens in pages(header.all()) {
            let mut page = vec![T::default(); tokens.len() * header.token_elements()];
            input.read_page(bytemuck::cast_slice_mut(&mut page))?;
            self.import_page(opened, header, tokens, &page)?;
        }
        Ok(())
    }

    /// Writes a page of a file to the path of `opened`, but for tokens that were found.
    pub(super) fn import_page<T: KvElement>(
        &mut self,
        opened: Opened,
        header: &Header,
        tokens: Range<u32>,
        page: &[T],
    ) -> Result<(), CacheError> {
        let new = tokens.start.max(opened.matched)..tokens.end;
        if new.is_empty() {
            return Ok(());
        }
        let row = header.row_elements();
        let held = (new.start - tokens.start) as usize * row;
        let mut rows = page.chunks_exact(tokens.len() * row);
        for layer in header.own_layers() {
            if let (Some(k), Some(v)) = (rows.next(), rows.next()) {
                let (k, v) = (&k[held..], &v[held..]);
                self.import(layer, opened.node, new.clone(), &whole(&new), k, v)?;
            }
        }
        Ok(())
    }
}

/// The foreign cache that holds just `tokens`, in order.
fn whole(tokens: &Range<u32>) -> PagedTable<'static> {
    PagedTable { order: PagedOrder::Nhd, page_size: tokens.end - tokens.start, pages: &[0] }
}
