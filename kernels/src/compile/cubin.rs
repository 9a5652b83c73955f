//! A cubin and its statistics: registers, memory, spills and counts of instructions.

use super::CompileError;

/// A kernel as machine code for one architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cubin {
    /// The ELF file that the driver loads.
    pub image: Vec<u8>,
    /// Name of the function in the image.
    pub name: String,
    /// Number of threads per block.
    pub units: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: usize,
    /// Resources that one thread needs.
    pub resources: Resources,
    /// Counts of the instructions that determine its speed.
    pub instructions: Instructions,
}

/// Resources of one thread, as ptxas reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resources {
    /// Number of 32-bit registers.
    pub registers: u32,
    /// Bytes of local memory for arrays that are not in registers.
    pub stack: u32,
    /// Bytes of spill stores and spill loads, which registers had no room for.
    pub spills: u32,
}

/// Static counts of instructions in the machine code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Instructions {
    /// Tensor-core multiplications (`HMMA`: m16n8k16, bf16 operands, f32 sums).
    pub hmma: u32,
    /// Tensor-core multiplications of a warpgroup (`HGMMA`: `wgmma`).
    pub hgmma: u32,
    /// Loads of matrix fragments from shared memory: `ldmatrix` (`LDSM`).
    pub ldsm: u32,
    /// Asynchronous copies to shared memory: `cp.async` (`LDGSTS`).
    pub ldgsts: u32,
    /// 16-byte loads from global memory (`LDG.128`).
    pub ldg128: u32,
    /// Atomic operations on global memory (`RED`, `ATOMG`).
    pub atomics: u32,
    /// Loads and stores of local memory (`LDL`, `STL`).
    pub local: u32,
    /// All instructions of the kernel.
    pub all: u32,
}

impl Resources {
    /// Parses the output of `--ptxas-options=-v`.
    pub(super) fn read(log: &str) -> Option<Self> {
        let before = |text: &str, word: &str| -> Option<u32> {
            let end = text.find(word)?;
            text[..end].trim_end().rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let stores = before(log, "bytes spill stores")?;
        Some(Self {
            registers: before(log, "registers")?,
            stack: before(log, "bytes stack frame")?,
            spills: stores + before(log, "bytes spill loads")?,
        })
    }
}

impl Instructions {
    /// Counts the 16-byte instructions of section `.text.<name>`. The low 12 bits are the opcode.
    pub(super) fn read(image: &[u8], name: &str) -> Result<Self, CompileError> {
        let refuse = |message: &str| CompileError::Cubin {
            kernel: name.to_owned(),
            message: message.to_owned(),
        };
        let text = section(image, &format!(".text.{name}"))
            .ok_or_else(|| refuse("it contains no code of the kernel"))?;
        let mut counts = Self::default();
        for instruction in text.chunks_exact(16) {
            let low = u64::from_le_bytes(instruction[..8].try_into().unwrap_or_default());
            let high = u64::from_le_bytes(instruction[8..].try_into().unwrap_or_default());
            counts.all += 1;
            match low & 0xFFF {
                0x23C => counts.hmma += 1,
                // The left operand is in registers or in shared memory.
                0xDF0 | 0x9F0 => counts.hgmma += 1,
                0x83B => counts.ldsm += 1,
                0xFAE => counts.ldgsts += 1,
                // Bits 73 to 75 are the width; 6 means 128 bits.
                0x981 if (high >> 9) & 7 == 6 => counts.ldg128 += 1,
                0x9A6 | 0x98E | 0x9A8 | 0x3A9 => counts.atomics += 1,
                0x983 | 0x387 => counts.local += 1,
                _ => {}
            }
        }
        Ok(counts)
    }
}

/// Contents of section `name` of a 64-bit little-endian ELF file.
fn section<'a>(image: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(image.get(at..at + bytes)?);
        usize::try_from(u64::from_le_bytes(value)).ok()
    };
    if image.get(..4)? != b"\x7fELF" {
        return None;
    }
    let (table, size, count, names) =
        (number(0x28, 8)?, number(0x3A, 2)?, number(0x3C, 2)?, number(0x3E, 2)?);
    let bounds = |index: usize| {
        let header = table + index * size;
        Some((number(header, 4)?, number(header + 0x18, 8)?, number(header + 0x20, 8)?))
    };
    let (_, strings, _) = bounds(names)?;
    for index in 0..count {
        let (label, offset, length) = bounds(index)?;
        let label = image.get(strings + label..)?;
        if label.starts_with(name.as_bytes()) && label.get(name.len()) == Some(&0) {
            return image.get(offset..offset + length);
        }
    }
    None
}
