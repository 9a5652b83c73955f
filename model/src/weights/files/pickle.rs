//! Reads pickles as data, without executing them.
//!
//! A pickle is a program of a stack machine that may call any function of Python. Here only the
//! opcodes run that build values, and a call becomes a [`Node::Call`] that nothing carries out. A
//! name that no file of weights needs, such as `os.system`, is refused.

use std::collections::HashMap;

/// Largest number of values of a pickle. That of a training checkpoint of a thousand tensors has
/// about 100,000.
const MOST_NODES: usize = 4_000_000;

/// Index of a node of a [`Pickle`].
pub(super) type NodeId = usize;

/// Value in a pickle. Containers hold the indices of their elements, so that values that contain
/// each other or themselves cost nothing.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// `None`, a number that is not an integer of 64 bits, or bytes: of no use for weights.
    Other,
    Bool(bool),
    Int(i64),
    Text(String),
    /// Tuple or list.
    Sequence(Vec<NodeId>),
    /// Dictionary, ordered or not.
    Map(Vec<(NodeId, NodeId)>),
    /// Function or class.
    Global {
        module: String,
        name: String,
    },
    /// Call of a function, or an object of a class, with the state that it was given.
    Call {
        function: NodeId,
        arguments: NodeId,
        state: Option<NodeId>,
    },
    /// Value that is stored outside of the pickle, with its description.
    Persistent(NodeId),
}

/// Values of a pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    nodes: Vec<Node>,
    root: NodeId,
}

impl Pickle {
    /// Reads a pickle.
    ///
    /// # Errors
    /// If it is damaged, too large, names a function or class that weights do not need, or uses an
    /// opcode that PyTorch's files do not have. The message ends with the byte.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut machine = Machine {
            bytes,
            at: 0,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        machine
            .run()
            .map_err(|reason| format!("{reason} (byte {} of the pickle)", machine.at))
            .map(|root| Self { nodes: machine.nodes, root })
    }

    /// The value that was pickled.
    pub(super) fn root(&self) -> NodeId {
        self.root
    }

    /// The value of an index.
    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// Module and name of a function or class.
    pub(super) fn global(&self, id: NodeId) -> Option<(&str, &str)> {
        match self.node(id) {
            Node::Global { module, name } => Some((module, name)),
            _ => None,
        }
    }

    /// Elements of a tuple or list.
    pub(super) fn sequence(&self, id: NodeId) -> Option<&[NodeId]> {
        match self.node(id) {
            Node::Sequence(elements) => Some(elements),
            _ => None,
        }
    }

    /// A number that is not negative.
    pub(super) fn number(&self, id: NodeId) -> Option<usize> {
        match self.node(id) {
            Node::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }

    /// A text.
    pub(super) fn text(&self, id: NodeId) -> Option<&str> {
        match self.node(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Whether files of weights name this function or class: what PyTorch's tensors are made of,
/// PyTorch's modules, and what training programs keep beside weights.
fn is_expected(module: &str, name: &str) -> bool {
    match module {
        "torch" => {
            name.ends_with("Storage")
                || ["Size", "device", "dtype"].contains(&name)
                || is_element(name)
        }
        "torch.storage" => name.ends_with("Storage"),
        "torch._utils" => name.starts_with("_rebuild_"),
        "torch.nn.parameter" | "torch.nn" => name == "Parameter",
        "collections" => ["OrderedDict", "defaultdict", "Counter"].contains(&name),
        "argparse" => name == "Namespace",
        "pathlib" => name.ends_with("Path"),
        "copyreg" | "copy_reg" => name == "_reconstructor",
        "builtins" | "__builtin__" => {
            ["object", "set", "frozenset", "complex", "slice"].contains(&name)
        }
        "_codecs" => name == "encode",
        "numpy" => ["dtype", "ndarray"].contains(&name),
        "numpy.core.multiarray" | "numpy._core.multiarray" => {
            ["scalar", "_reconstruct"].contains(&name)
        }
        _ => ["torch.nn.modules.", "fairseq.", "omegaconf."].iter().any(|m| module.starts_with(m)),
    }
}

/// Whether this is the name of a type of PyTorch's elements.
fn is_element(name: &str) -> bool {
    let digits = name.find(|c: char| c.is_ascii_digit()).unwrap_or(name.len());
    ["float", "bfloat", "int", "uint", "complex", "bool", "qint", "quint"]
        .contains(&&name[..digits])
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<NodeId>,
    /// Heights of the stack at the marks that are open.
    marks: Vec<usize>,
    memo: HashMap<u32, NodeId>,
}

impl Machine<'_> {
    /// Runs the opcodes up to the end. They are those of protocols 2 to 4 that PyTorch writes.
    fn run(&mut self) -> Result<NodeId, String> {
        loop {
            let [opcode] = self.take()?;
            match opcode {
                // PROTO, FRAME: nothing to build.
                0x80 => _ = self.take::<1>()?,
                0x95 => _ = self.take::<8>()?,
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => _ = self.pop()?,
                b'N' | 0x88 | 0x89 | b'K' | b'M' | b'J' | 0x8a | b'G' | b'X' | 0x8c | 0x8d
                | b'T' | b'U' | b'C' | b'B' | 0x8e => self.constant(opcode)?,
                b')' | b']' => self.push(Node::Sequence(Vec::new()))?,
                b'}' | 0x8f => self.push(Node::Map(Vec::new()))?,
                b't' | b'l' => {
                    let elements = self.since_mark()?;
                    self.push(Node::Sequence(elements))?;
                }
                0x85 => self.tuple(1)?,
                0x86 => self.tuple(2)?,
                0x87 => self.tuple(3)?,
                b'a' => {
                    let element = self.pop()?;
                    self.append(vec![element])?;
                }
                b'e' | 0x90 => {
                    let elements = self.since_mark()?;
                    self.append(elements)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.insert(&[key, value])?;
                }
                b'u' => {
                    let elements = self.since_mark()?;
                    self.insert(&elements)?;
                }
                b'q' | b'r' | 0x94 => self.memorise(opcode)?,
                b'h' | b'j' => self.recall(opcode)?,
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    match (&self.nodes[module], &self.nodes[name]) {
                        (Node::Text(module), Node::Text(name)) => {
                            let (module, name) = (module.clone(), name.clone());
                            self.global(module, name)?;
                        }
                        _ => return Err("a function has no name".to_owned()),
                    }
                }
                // REDUCE, NEWOBJ
                b'R' | 0x81 => self.call()?,
                b'b' => self.build()?,
                b'Q' => {
                    let description = self.pop()?;
                    self.push(Node::Persistent(description))?;
                }
                other => {
                    return Err(format!(
                        "it has the opcode {other:#04x}, which weights do not need"
                    ));
                }
            }
        }
    }

    /// Pushes a value that stands in the pickle itself.
    fn constant(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            b'K' | b'M' | b'J' | 0x8a => self.integer(opcode),
            b'X' | 0x8c | 0x8d | b'T' | b'U' => self.text(opcode),
            b'G' => {
                self.take::<8>()?;
                self.push(Node::Other)
            }
            b'C' | b'B' | 0x8e => {
                let length = self.length(opcode)?;
                self.slice(length)?;
                self.push(Node::Other)
            }
            // NONE
            _ => self.push(Node::Other),
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let taken = self.bytes[self.at..].first_chunk().ok_or("it is cut short")?;
        self.at += N;
        Ok(*taken)
    }

    fn slice(&mut self, length: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("it is cut short")?;
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    /// Length of a text or of bytes, as their opcode writes it.
    fn length(&mut self, opcode: u8) -> Result<usize, String> {
        let length = match opcode {
            0x8c | b'C' | b'U' => u64::from(u8::from_le_bytes(self.take()?)),
            b'X' | b'B' | b'T' => u64::from(u32::from_le_bytes(self.take()?)),
            _ => u64::from_le_bytes(self.take()?),
        };
        usize::try_from(length).map_err(|_| "it is cut short".to_owned())
    }

    /// A text, as Python 3 or Python 2 writes it.
    fn text(&mut self, opcode: u8) -> Result<(), String> {
        let length = self.length(opcode)?;
        let text = String::from_utf8_lossy(self.slice(length)?).into_owned();
        self.push(Node::Text(text))
    }

    fn integer(&mut self, opcode: u8) -> Result<(), String> {
        let number = match opcode {
            b'K' => i64::from(u8::from_le_bytes(self.take()?)),
            b'M' => i64::from(u16::from_le_bytes(self.take()?)),
            b'J' => i64::from(i32::from_le_bytes(self.take()?)),
            _ => {
                let [length] = self.take()?;
                let bytes = self.slice(usize::from(length))?;
                // Two's complement in as few bytes as the number needs.
                let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
                let mut eight = [if negative { 0xff } else { 0 }; 8];
                let Some(low) = eight.get_mut(..bytes.len()) else { return self.push(Node::Other) };
                low.copy_from_slice(bytes);
                i64::from_le_bytes(eight)
            }
        };
        self.push(Node::Int(number))
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or("it is cut short")?;
        self.at += end + 1;
        Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
    }

    fn push(&mut self, node: Node) -> Result<(), String> {
        if self.nodes.len() >= MOST_NODES {
            return Err(format!("it has more than {MOST_NODES} values"));
        }
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
        Ok(())
    }

    /// Takes the uppermost value. Values below an open mark are out of reach.
    fn pop(&mut self) -> Result<NodeId, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("a value is missing".to_owned());
        }
        self.stack.pop().ok_or_else(|| "a value is missing".to_owned())
    }

    /// The value that stays uppermost.
    fn top(&self) -> Result<NodeId, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack
            .get(floor..)
            .and_then(<[NodeId]>::last)
            .copied()
            .ok_or_else(|| "a value is missing".to_owned())
    }

    fn since_mark(&mut self) -> Result<Vec<NodeId>, String> {
        let mark = self.marks.pop().ok_or("a mark is missing")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn tuple(&mut self, count: usize) -> Result<(), String> {
        let mut elements = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        elements.reverse();
        self.push(Node::Sequence(elements))
    }

    fn append(&mut self, elements: Vec<NodeId>) -> Result<(), String> {
        let list = self.top()?;
        match &mut self.nodes[list] {
            Node::Sequence(list) => list.extend(elements),
            Node::Map(set) => set.extend(elements.into_iter().map(|element| (element, element))),
            // A class that is built from a list.
            Node::Call { .. } => {}
            _ => return Err("values are appended to something that is no list".to_owned()),
        }
        Ok(())
    }

    fn insert(&mut self, pairs: &[NodeId]) -> Result<(), String> {
        let (pairs, rest) = pairs.as_chunks::<2>();
        let map = self.top()?;
        match &mut self.nodes[map] {
            Node::Map(map) if rest.is_empty() => map.extend(pairs.iter().map(|[k, v]| (*k, *v))),
            Node::Call { .. } => {}
            _ => return Err("values are put into something that is no dictionary".to_owned()),
        }
        Ok(())
    }

    fn memorise(&mut self, opcode: u8) -> Result<(), String> {
        let key = match opcode {
            b'q' => u32::from(u8::from_le_bytes(self.take()?)),
            b'r' => u32::from_le_bytes(self.take()?),
            _ => u32::try_from(self.memo.len()).unwrap_or(u32::MAX),
        };
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, opcode: u8) -> Result<(), String> {
        let key = match opcode {
            b'h' => u32::from(u8::from_le_bytes(self.take()?)),
            _ => u32::from_le_bytes(self.take()?),
        };
        let id = *self.memo.get(&key).ok_or("it refers to a value that it has not")?;
        self.stack.push(id);
        Ok(())
    }

    fn global(&mut self, module: String, name: String) -> Result<(), String> {
        if !is_expected(&module, &name) {
            return Err(format!(
                "it names `{module}.{name}`, which weights do not need and which could do harm where \
                 a pickle is executed; nothing was executed here"
            ));
        }
        self.push(Node::Global { module, name })
    }

    fn call(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let node = match &self.nodes[function] {
            Node::Global { module, name } if module == "collections" && name != "defaultdict" => {
                Node::Map(Vec::new())
            }
            Node::Global { .. } => Node::Call { function, arguments, state: None },
            _ => return Err("something is called that is no function".to_owned()),
        };
        self.push(node)
    }

    fn build(&mut self) -> Result<(), String> {
        let state = self.pop()?;
        let object = self.top()?;
        match &mut self.nodes[object] {
            Node::Call { state: own, .. } => *own = Some(state),
            // Attributes of an ordered dictionary, such as the versions of modules.
            Node::Map(_) => {}
            _ => return Err("a state is given to something that is no object".to_owned()),
        }
        Ok(())
    }
}
