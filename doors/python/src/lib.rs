//! The Python door: `deft._deft`, which the package `deft` wraps.
//!
//! Arrays come by DLPack, so numpy's, torch's and everybody else's are the same here. The calls and their checks are
//! those of the C door.

mod dlpack;

use deft_c::{Cache, Error, Shape, Tables, dtype};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::dlpack::Array;

fn refused(error: Error) -> PyErr {
    PyValueError::new_err(error.0)
}

/// f16, bf16 or f32 by name.
fn code(name: &str) -> PyResult<i32> {
    let names = ["float16", "bfloat16", "float32"];
    let found = names.iter().position(|known| *known == name);
    found.map(|at| at as i32).ok_or_else(|| {
        PyValueError::new_err(format!("dtype is {name}; it must be float16, bfloat16 or float32"))
    })
}

/// Block tables as lists of numbers that numpy made.
struct Given {
    ids: Array,
    lens: Array,
    queries: Option<Array>,
    masks: Option<Array>,
    page_size: u32,
}

impl Given {
    fn read(
        [ids, lens]: [&Bound<'_, PyAny>; 2],
        [queries, masks]: [Option<&Bound<'_, PyAny>>; 2],
        page_size: u32,
    ) -> PyResult<Self> {
        let i32s = |name, dims, array| Array::integers(name, array, dims, 32);
        Ok(Self {
            ids: i32s("block_tables", 2, ids)?,
            lens: i32s("lens", 1, lens)?,
            queries: queries.map(|array| i32s("queries", 1, array)).transpose()?,
            masks: masks.map(|array| Array::integers("masks", array, 2, 64)).transpose()?,
            page_size,
        })
    }

    /// The same as the C door has them. Lengths are compared here, where they are known.
    fn tables(&self) -> PyResult<Tables> {
        let sequences = self.lens.shape(0);
        let same = |name: &str, found, expected| match found == expected {
            true => Ok(()),
            false => Err(PyValueError::new_err(format!(
                "{name} has {found} rows; it must have {expected}"
            ))),
        };
        same("block_tables", self.ids.shape(0), sequences)?;
        let mut rows = sequences as u64;
        if let Some(queries) = &self.queries {
            same("queries", queries.shape(0), sequences)?;
            rows = queries.i32s().iter().map(|&count| u64::try_from(count).unwrap_or(0)).sum();
        }
        if let Some(masks) = &self.masks {
            same("masks", masks.shape(0), rows as usize)?;
        }
        Ok(Tables {
            ids: self.ids.data().cast(),
            lens: self.lens.data().cast(),
            queries: self.queries.as_ref().map_or(std::ptr::null(), |array| array.data().cast()),
            masks: self.masks.as_ref().map_or(std::ptr::null(), |array| array.data().cast()),
            sequences: sequences as u64,
            stride: self.ids.shape(1) as u64,
            mask_words: self.masks.as_ref().map_or(0, |masks| masks.shape(1) as u64),
            page_size: self.page_size,
            reserved: 0,
        })
    }
}

#[pyclass(module = "deft")]
struct Plan {
    inner: deft_c::Plan,
    dtype: i32,
}

#[pymethods]
impl Plan {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "keywords of the package's class")]
    #[pyo3(signature = (heads, dtype, gpu, page_size, block_tables, lens, queries=None, masks=None))]
    fn new(
        heads: [u32; 3],
        dtype: &str,
        gpu: i32,
        page_size: u32,
        block_tables: &Bound<'_, PyAny>,
        lens: &Bound<'_, PyAny>,
        queries: Option<&Bound<'_, PyAny>>,
        masks: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let given = Given::read([block_tables, lens], [queries, masks], page_size)?;
        let (code, tables) = (code(dtype)?, given.tables()?);
        let of = self::dtype(code).map_err(refused)?;
        // SAFETY: the arrays are held by `given`, their shapes were read.
        let inner = unsafe { deft_c::Plan::new(heads, of, gpu, &tables) }.map_err(refused)?;
        Ok(Self { inner, dtype: code })
    }

    #[pyo3(signature = (page_size, block_tables, lens, queries=None, masks=None))]
    fn update(
        &mut self,
        page_size: u32,
        block_tables: &Bound<'_, PyAny>,
        lens: &Bound<'_, PyAny>,
        queries: Option<&Bound<'_, PyAny>>,
        masks: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<&'static str> {
        let given = Given::read([block_tables, lens], [queries, masks], page_size)?;
        let tables = given.tables()?;
        // SAFETY: as in `new`.
        let update = unsafe { self.inner.update(&tables) }.map_err(refused)?;
        Ok(name_of(update))
    }

    fn upload(&mut self, stream: usize) -> PyResult<bool> {
        // SAFETY: the caller's stream.
        unsafe { self.inner.upload(stream) }.map_err(refused)
    }

    #[getter]
    fn tokens(&self) -> [u64; 2] {
        self.inner.tokens()
    }

    #[getter]
    fn rows(&self) -> u32 {
        self.inner.rows()
    }

    #[expect(clippy::too_many_arguments, reason = "keywords of the package's function")]
    fn attend(
        &mut self,
        py: Python<'_>,
        q: &Bound<'_, PyAny>,
        k: &Bound<'_, PyAny>,
        v: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        lse: Option<&Bound<'_, PyAny>>,
        scale: f32,
        soft_cap: f32,
        stream: usize,
    ) -> PyResult<()> {
        let read = |name, array| Array::tensor(name, array, self.dtype);
        let (q, k, v) = (read("q", q)?, read("k", k)?, read("v", v)?);
        let out = read("out", out)?;
        let lse = lse.map(|lse| Array::tensor("lse", lse, 2)).transpose()?;
        let tensors = [&q, &k, &v, &out].map(Array::as_tensor);
        let (plan, lse) = (&mut self.inner, lse.as_ref().map(Array::as_tensor));
        let held = Held(tensors, lse);
        py.detach(move || {
            let Held(tensors, lse) = { held };
            // SAFETY: the arrays are held by this call's arguments, on a GPU by the caller until its stream has done the work;
            // what is written is compared with the others.
            unsafe { plan.attend(tensors.each_ref(), lse.as_ref(), scale, soft_cap, stream) }
        })
        .map_err(refused)
    }
}

/// Tensors that another thread may use while Python's lock is free.
struct Held([deft_c::Tensor; 4], Option<deft_c::Tensor>);

// SAFETY: they are addresses; whose memory it is the caller of `attend` holds.
unsafe impl Send for Held {}

fn name_of(update: i32) -> &'static str {
    ["unchanged", "patched", "replanned"][update as usize]
}

/// A batch of a cache.
#[pyclass(module = "deft")]
struct Batch(deft::Batch);

#[pymethods]
impl Batch {
    #[getter]
    fn rows(&self) -> usize {
        self.0.rows()
    }

    #[getter]
    fn positions(&self) -> Vec<u32> {
        self.0.positions().to_vec()
    }
}

#[pyclass(module = "deft", unsendable)]
struct TreeCache {
    inner: Cache,
    dtype: i32,
}

fn keys(nodes: &[u64]) -> Vec<deft::NodeKey> {
    nodes.iter().map(|&node| deft::NodeKey::from_bits(node)).collect()
}

fn bits(nodes: Vec<deft::NodeKey>) -> Vec<u64> {
    nodes.into_iter().map(deft::NodeKey::to_bits).collect()
}

fn cache_refused(error: deft::CacheError) -> PyErr {
    refused(error.into())
}

#[pymethods]
impl TreeCache {
    #[new]
    #[pyo3(signature = (layers, heads, dtype, capacity_bytes, gpu=-1, scale=0.0, soft_cap=0.0))]
    fn new(
        layers: u32,
        heads: [u32; 3],
        dtype: &str,
        capacity_bytes: u64,
        gpu: i32,
        scale: f32,
        soft_cap: f32,
    ) -> PyResult<Self> {
        let ([q_heads, kv_heads, head_dim], dtype) = (heads, code(dtype)?);
        let shape = Shape {
            capacity_bytes,
            layers,
            q_heads,
            kv_heads,
            head_dim,
            dtype,
            gpu,
            scale,
            soft_cap,
        };
        Ok(Self { inner: Cache::new(&shape).map_err(refused)?, dtype })
    }

    fn insert_root(&mut self) -> PyResult<u64> {
        Ok(self.inner.inner.insert_root().map_err(cache_refused)?.to_bits())
    }

    fn fork(&mut self, node: u64, count: usize) -> PyResult<Vec<u64>> {
        let node = deft::NodeKey::from_bits(node);
        self.inner.inner.fork(node, count).map(bits).map_err(cache_refused)
    }

    fn prune(&mut self, node: u64) -> PyResult<u32> {
        self.inner.inner.prune(deft::NodeKey::from_bits(node)).map_err(cache_refused)
    }

    /// A token a node.
    fn insert_draft(&mut self, trunk: u64, parents: Vec<i32>) -> PyResult<Vec<u64>> {
        let node = |parent| deft_c::Draft { parent, tokens: 1 };
        let draft: Vec<_> = parents.into_iter().map(node).collect();
        let trunk = deft::NodeKey::from_bits(trunk);
        self.inner.insert_draft(trunk, &draft).map(bits).map_err(refused)
    }

    fn accept(&mut self, trunk: u64, path: Vec<u64>) -> PyResult<()> {
        let trunk = deft::NodeKey::from_bits(trunk);
        self.inner.inner.accept(trunk, &keys(&path)).map_err(cache_refused)
    }

    fn length(&self, node: u64) -> PyResult<u32> {
        let length = self.inner.inner.forest().length(deft::NodeKey::from_bits(node));
        length.map_err(|error| refused(error.into()))
    }

    fn batch(&mut self, nodes: Vec<(u64, u32)>) -> PyResult<Batch> {
        let of = |(node, tokens)| (deft::NodeKey::from_bits(node), tokens);
        let nodes: Vec<_> = nodes.into_iter().map(of).collect();
        self.inner.inner.batch(&nodes).map(Batch).map_err(cache_refused)
    }

    fn advance(&mut self, batch: &mut Batch, tokens: u32) -> PyResult<&'static str> {
        let update = self.inner.inner.advance(&mut batch.0, tokens).map_err(cache_refused)?;
        Ok(match update {
            deft::PlanUpdate::Unchanged => name_of(0),
            deft::PlanUpdate::Patched => name_of(1),
            deft::PlanUpdate::Replanned => name_of(2),
        })
    }

    fn append(
        &mut self,
        layer: u32,
        batch: &Batch,
        k: &Bound<'_, PyAny>,
        v: &Bound<'_, PyAny>,
        stream: usize,
    ) -> PyResult<()> {
        let (k, v) = (Array::tensor("k", k, self.dtype)?, Array::tensor("v", v, self.dtype)?);
        let tensors = [&k.as_tensor(), &v.as_tensor()];
        // SAFETY: the arrays are held here; on a GPU by the caller, on the stream that it names.
        unsafe { self.inner.append(layer, &batch.0, tensors, stream) }.map_err(refused)
    }

    fn attend(
        &mut self,
        layer: u32,
        batch: &Batch,
        q: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        lse: Option<&Bound<'_, PyAny>>,
        stream: usize,
    ) -> PyResult<()> {
        let (q, out) = (Array::tensor("q", q, self.dtype)?, Array::tensor("out", out, self.dtype)?);
        let lse = lse.map(|lse| Array::tensor("lse", lse, 2)).transpose()?;
        let (lse, tensors) =
            (lse.as_ref().map(Array::as_tensor), [&q.as_tensor(), &out.as_tensor()]);
        // SAFETY: as in `append`.
        unsafe { self.inner.attend(layer, &batch.0, tensors, lse.as_ref(), stream) }
            .map_err(refused)
    }
}

#[pymodule]
fn _deft(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<Plan>()?;
    module.add_class::<Batch>()?;
    module.add_class::<TreeCache>()
}
