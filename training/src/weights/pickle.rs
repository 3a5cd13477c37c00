//! A pickle reader that builds plain data and executes nothing.
//!
//! Python's pickle is a program for a small stack machine that may call any function it names. PyTorch needs a
//! handful of those calls to describe tensors; this reader recognises them by name and keeps every other object as
//! opaque data. Values live in one arena and refer to each other by index, so that shared objects are shared, cycles
//! are harmless, and deep nesting costs no stack. Memory is bounded by the length of the input: an opcode adds at most
//! one value.
//!
//! The opcodes are those of Python's `pickletools`, protocols 2 to 5 (PyTorch writes 2).

use std::collections::HashMap;

/// Why a pickle cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Error {
    /// The bytes end in the middle of an instruction or without a result.
    #[error("the pickle ends at byte {0} in the middle of an instruction")]
    Truncated(usize),
    /// An instruction that PyTorch does not write.
    #[error("unsupported pickle instruction 0x{code:02x} at byte {at}")]
    Opcode {
        /// The instruction.
        code: u8,
        /// Where it stands.
        at: usize,
    },
    /// An instruction found other operands than it needs.
    #[error("malformed pickle at byte {at}: {reason}")]
    Malformed {
        /// Where it was noticed.
        at: usize,
        /// What does not fit.
        reason: &'static str,
    },
}

/// Index of a value in its [`Heap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id(u32);

/// A pickled value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// An integer of at most 64 bits.
    Int(i64),
    /// A floating point number.
    Float(f64),
    /// Text.
    Str(String),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A list or a set.
    List(Vec<Id>),
    /// A dictionary in the order of its insertions.
    Dict(Vec<(Id, Id)>),
    /// A class or function, by name only.
    Global {
        /// Its module.
        module: String,
        /// Its name inside the module.
        name: String,
    },
    /// A reference to data outside the pickle (in PyTorch: a storage).
    Persistent(Id),
    /// What calling a global would have made. It is never called.
    Object {
        /// The global.
        class: Id,
        /// Its arguments.
        args: Id,
        /// Entries, when the object was filled like a dictionary.
        items: Vec<(Id, Id)>,
        /// Its attributes.
        state: Option<Id>,
    },
    /// Bytes and integers beyond 64 bits, which no checkpoint needs.
    Opaque,
}

/// All values of one pickle.
#[derive(Debug, Default)]
pub(super) struct Heap(Vec<Value>);

impl Heap {
    /// The value behind an index that this heap gave out.
    pub(super) fn get(&self, id: Id) -> &Value {
        &self.0[id.0 as usize]
    }

    /// All values in the order in which they were made.
    pub(super) fn values(&self) -> impl Iterator<Item = &Value> {
        self.0.iter()
    }

    /// The text behind `id`, if it is text.
    pub(super) fn str(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// Module and name of the global behind `id`, if it is one.
    pub(super) fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.get(id) {
            Value::Global { module, name } => Some((module, name)),
            _ => None,
        }
    }

    /// Elements of the tuple behind `id`, if it is one.
    pub(super) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    fn push(&mut self, value: Value) -> Id {
        // The input is shorter than 2^32 bytes (checked in `read`), and each instruction pushes one value at most.
        let id = Id(self.0.len() as u32);
        self.0.push(value);
        id
    }
}

/// Reads one pickle from the start of `bytes`: its values, the index of the result, and how many bytes it took.
///
/// # Errors
/// See [`Error`]; the input may be arbitrary bytes.
pub(super) fn read(bytes: &[u8]) -> Result<(Heap, Id, usize), Error> {
    if u32::try_from(bytes.len()).is_err() {
        return Err(Error::Malformed { at: 0, reason: "longer than 4 GiB" });
    }
    let mut machine = Machine { bytes, at: 0, heap: Heap::default(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    let root = machine.run()?;
    Ok((machine.heap, root, machine.at))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    heap: Heap,
    stack: Vec<Id>,
    /// Heights of the stack at each open MARK.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id, Error> {
        loop {
            let at = self.at;
            let code = self.take(1)?[0];
            if code == b'.' {
                return self.pop();
            }
            if !(self.literal(code)? || self.container(code)? || self.reference(code)?) {
                return Err(Error::Opcode { code, at });
            }
        }
    }

    /// Instructions that push a plain value. Returns whether `code` is one.
    fn literal(&mut self, code: u8) -> Result<bool, Error> {
        match code {
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            // BININT, BININT1, BININT2, LONG1, LONG4, BINFLOAT
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()));
            }
            b'K' => {
                let value = self.take(1)?[0];
                self.push(Value::Int(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()));
            }
            0x8a => {
                let length = self.length8()?;
                self.long(length)?;
            }
            0x8b => {
                let length = self.length32()?;
                self.long(length)?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(value));
            }
            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8, and Python 2's BINSTRING and SHORT_BINSTRING
            b'X' | b'T' => {
                let length = self.length32()?;
                self.text(length)?;
            }
            0x8c | b'U' => {
                let length = self.length8()?;
                self.text(length)?;
            }
            0x8d => {
                let length = self.length64()?;
                self.text(length)?;
            }
            // BINBYTES, SHORT_BINBYTES, BINBYTES8, BYTEARRAY8
            b'B' => {
                let length = self.length32()?;
                self.opaque(length)?;
            }
            b'C' => {
                let length = self.length8()?;
                self.opaque(length)?;
            }
            0x8e | 0x96 => {
                let length = self.length64()?;
                self.opaque(length)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Instructions that make or fill tuples, lists, sets and dictionaries. Returns whether `code` is one.
    fn container(&mut self, code: u8) -> Result<bool, Error> {
        match code {
            b')' => self.push(Value::Tuple(Vec::new())),
            // TUPLE1, TUPLE2, TUPLE3
            0x85..=0x87 => {
                let count = usize::from(code - 0x84);
                let start = self.stack.len().checked_sub(count).filter(|start| self.floor() <= *start);
                let start = start.ok_or(self.malformed("a tuple of more values than there are"))?;
                let items = self.stack.split_off(start);
                self.push(Value::Tuple(items));
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items));
            }
            // EMPTY_LIST, EMPTY_SET; LIST, FROZENSET; APPEND; APPENDS, ADDITEMS
            b']' | 0x8f => self.push(Value::List(Vec::new())),
            b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.push(Value::List(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            // EMPTY_DICT, DICT, SETITEM, SETITEMS
            b'}' => self.push(Value::Dict(Vec::new())),
            b'd' => {
                let items = self.pop_mark()?;
                let pairs = self.pairs(&items)?;
                self.push(Value::Dict(pairs));
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(vec![(key, value)])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                let pairs = self.pairs(&items)?;
                self.set_items(pairs)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Instructions for the stack, the memo, globals and what is made of them. Returns whether `code` is one.
    fn reference(&mut self, code: u8) -> Result<bool, Error> {
        match code {
            // PROTO, FRAME
            0x80 => _ = self.take(1)?,
            0x95 => _ = self.take(8)?,
            // MARK, POP, POP_MARK, DUP
            b'(' => self.marks.push(self.stack.len()),
            b'0' => _ = self.pop()?,
            b'1' => _ = self.pop_mark()?,
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            // BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
            b'q' => {
                let key = self.take(1)?[0].into();
                self.memoise(key)?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.memoise(key)?;
            }
            0x94 => self.memoise(self.memo.len() as u32)?,
            b'h' => {
                let key = self.take(1)?[0].into();
                self.recall(key)?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)?;
            }
            // GLOBAL, STACK_GLOBAL, BINPERSID
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.push(Value::Global { module, name });
            }
            0x93 => {
                let name = self.pop_text()?;
                let module = self.pop_text()?;
                self.push(Value::Global { module, name });
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id));
            }
            // REDUCE, NEWOBJ; NEWOBJ_EX; BUILD
            b'R' | 0x81 => {
                let args = self.pop()?;
                let class = self.pop()?;
                self.call(class, args);
            }
            0x92 => {
                _ = self.pop()?;
                let args = self.pop()?;
                let class = self.pop()?;
                self.call(class, args);
            }
            b'b' => {
                let new = self.pop()?;
                let target = self.top()?;
                // Dictionaries carry attributes too (PyTorch's `_metadata`); only objects have any that count.
                if let Value::Object { state, .. } = &mut self.heap.0[target.0 as usize] {
                    *state = Some(new);
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn malformed(&self, reason: &'static str) -> Error {
        Error::Malformed { at: self.at, reason }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(Error::Truncated(self.bytes.len()))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn length8(&mut self) -> Result<usize, Error> {
        Ok(self.take(1)?[0].into())
    }

    fn length32(&mut self) -> Result<usize, Error> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn length64(&mut self) -> Result<usize, Error> {
        let length = u64::from_le_bytes(self.array()?);
        usize::try_from(length).map_err(|_| Error::Truncated(self.bytes.len()))
    }

    fn line(&mut self) -> Result<String, Error> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or(Error::Truncated(self.bytes.len()))?;
        let line = self.take(length + 1)?;
        Ok(String::from_utf8_lossy(&line[..length]).trim_end_matches('\r').to_owned())
    }

    fn text(&mut self, length: usize) -> Result<(), Error> {
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.push(Value::Str(text));
        Ok(())
    }

    fn opaque(&mut self, length: usize) -> Result<(), Error> {
        self.take(length)?;
        self.push(Value::Opaque);
        Ok(())
    }

    /// A little-endian two's complement integer of `length` bytes.
    fn long(&mut self, length: usize) -> Result<(), Error> {
        let bytes = self.take(length)?;
        let value = if length <= 8 {
            let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
            let mut wide = if negative { [0xff; 8] } else { [0; 8] };
            wide[..length].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(wide))
        } else {
            Value::Opaque
        };
        self.push(value);
        Ok(())
    }

    fn push(&mut self, value: Value) {
        let id = self.heap.push(value);
        self.stack.push(id);
    }

    /// Values below the last MARK are out of reach until it is closed.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id, Error> {
        if self.stack.len() <= self.floor() {
            return Err(self.malformed("a value is needed and none is there"));
        }
        self.stack.pop().ok_or(self.malformed("a value is needed and none is there"))
    }

    fn top(&self) -> Result<Id, Error> {
        let top = self.stack[self.floor()..].last();
        top.copied().ok_or(self.malformed("a value is needed and none is there"))
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, Error> {
        let start = self.marks.pop().ok_or(self.malformed("a mark is closed that was never set"))?;
        Ok(self.stack.split_off(start))
    }

    fn pop_text(&mut self) -> Result<String, Error> {
        let id = self.pop()?;
        self.heap.str(id).map(str::to_owned).ok_or(self.malformed("text is needed"))
    }

    fn pairs(&self, items: &[Id]) -> Result<Vec<(Id, Id)>, Error> {
        if !items.len().is_multiple_of(2) {
            return Err(self.malformed("a key without a value"));
        }
        Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn append(&mut self, new: Vec<Id>) -> Result<(), Error> {
        let target = self.top()?;
        match &mut self.heap.0[target.0 as usize] {
            Value::List(items) => items.extend(new),
            Value::Object { .. } => {}
            _ => return Err(self.malformed("only a list can be appended to")),
        }
        Ok(())
    }

    fn set_items(&mut self, new: Vec<(Id, Id)>) -> Result<(), Error> {
        let target = self.top()?;
        match &mut self.heap.0[target.0 as usize] {
            Value::Dict(items) | Value::Object { items, .. } => items.extend(new),
            _ => return Err(self.malformed("only a dictionary takes keys")),
        }
        Ok(())
    }

    /// The value of a call, which is not made: dictionaries become dictionaries, everything else an opaque object.
    fn call(&mut self, class: Id, args: Id) {
        let value = match self.heap.global(class) {
            Some(("collections", "OrderedDict" | "defaultdict")) => Value::Dict(Vec::new()),
            _ => Value::Object { class, args, items: Vec::new(), state: None },
        };
        self.push(value);
    }

    fn memoise(&mut self, key: u32) -> Result<(), Error> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), Error> {
        let id = *self.memo.get(&key).ok_or(self.malformed("a memo entry that was never made"))?;
        self.stack.push(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_and_cyclic_values_end() {
        // l = []; l.append(l)
        let (heap, root, used) = read(b"\x80\x02]q\x00h\x00a.rest").unwrap();
        assert_eq!(heap.get(root), &Value::List(vec![root]));
        assert_eq!(used, 9);
    }

    #[test]
    fn a_dictionary_filled_after_it_was_memoised_is_seen_filled() {
        let (heap, root, _) = read(b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x07sh\x00\x86.").unwrap();
        let both = heap.tuple(root).unwrap();
        assert_eq!(both[0], both[1]);
        assert!(matches!(heap.get(both[0]), Value::Dict(items) if items.len() == 1));
    }

    #[test]
    fn a_call_is_recorded_and_not_made() {
        let (heap, root, _) = read(b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R.").unwrap();
        let Value::Object { class, .. } = heap.get(root) else { panic!("{:?}", heap.get(root)) };
        assert_eq!(heap.global(*class), Some(("os", "system")));
    }

    #[test]
    fn negative_and_long_integers() {
        let (heap, root, _) = read(b"\x8a\x01\xff\x8a\x02\x00\x01J\xfe\xff\xff\xff\x87.").unwrap();
        let values: Vec<_> = heap.tuple(root).unwrap().iter().map(|id| heap.get(*id).clone()).collect();
        assert_eq!(values, [Value::Int(-1), Value::Int(256), Value::Int(-2)]);
    }

    #[test]
    fn a_million_nested_tuples_neither_overflow_nor_take_long() {
        let mut bytes = vec![b')'];
        bytes.extend(std::iter::repeat_n(0x85, 1_000_000));
        bytes.push(b'.');
        assert!(read(&bytes).is_ok());
    }

    #[test]
    fn every_cut_and_every_changed_byte_ends_in_an_answer() {
        let good = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01G@\x00\x00\x00\x00\x00\x00\x00eX\x01\x00\x00\x00bccollections\nOrderedDict\nq\x03)Rq\x04u.";
        assert!(read(good).is_ok());
        for end in 0..good.len() {
            assert!(read(&good[..end]).is_err(), "cut at {end}");
        }
        for at in 0..good.len() {
            for byte in 0..=255 {
                let mut changed = good.to_vec();
                changed[at] = byte;
                _ = read(&changed);
            }
        }
    }

    #[test]
    fn a_length_beyond_the_end_reserves_nothing() {
        assert_eq!(read(b"X\xff\xff\xff\xffabc").unwrap_err(), Error::Truncated(8));
        assert_eq!(read(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc").unwrap_err(), Error::Truncated(12));
    }
}
