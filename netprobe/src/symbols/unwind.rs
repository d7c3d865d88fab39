//! From a copied stack to the return addresses in it, by the unwind tables of the code.
//!
//! Code without tables (made at run time, or by compilers that always keep frame pointers) is
//! left by its frame pointer; within a file of which other code has tables, as V8's builtins, only if the stack shows no
//! other caller. A caller is believed only if it lies in code that is mapped; where nothing is left to
//! believe, the stack ends and is not whole.

use std::mem;

use gimli::{
    CfaRule, Encoding, EvaluationResult, Format, Location, Register, RegisterRule,
    UnwindExpression, Value,
};

use super::{
    go_table::{GoFrame, GoTable},
    tables::{Row, Tables},
};

/// Registers that are followed, by their numbers in DWARF; the last is the return address.
const REGISTERS: usize = 17;
const FRAME_POINTER: usize = 6;
const STACK_POINTER: usize = 7;
const RETURN_ADDRESS: usize = 16;
/// Registers that a function leaves as they were: rbx, rbp, r12 to r15.
const SAVED: [usize; 6] = [3, 6, 12, 13, 14, 15];
/// Where the kernel keeps each of them in `pt_regs`.
const KERNEL_ORDER: [usize; REGISTERS] = [10, 12, 11, 5, 13, 14, 4, 19, 9, 8, 7, 6, 3, 2, 1, 0, 16];
/// The place of the instruction pointer in `pt_regs`.
pub const INSTRUCTION_POINTER: usize = 16;
/// Frames that are followed; deeper stacks are cut.
const MOST_FRAMES: usize = 512;
/// Words on top of the stack among which a return address is that of a function that has only begun: the caller's
/// frame pointer may have been pushed.
const PUSHED: usize = 2;
/// Steps of an expression.
const MOST_STEPS: u32 = 256;

/// A stack as it was copied, with the registers of its innermost function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedStack {
    /// The registers in the order of the kernel's `pt_regs`.
    pub registers: [u64; 21],
    /// What was on the stack from the stack pointer on.
    pub bytes: Vec<u8>,
    /// The same stack as the kernel has found it by frame pointers, where that may lead further: the innermost place,
    /// then return addresses, and 0 if that is all.
    pub walked: Vec<u64>,
    /// When it was copied.
    pub taken: Taken,
}

/// Between which moments something was taken, by `CLOCK_MONOTONIC` in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Not before.
    pub after_ns: u64,
    /// Not later.
    pub before_ns: u64,
}

/// The functions of a stack, by address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unwound {
    /// Where each function is, innermost first: the instruction that was interrupted, or the call.
    pub places: Vec<u64>,
    /// The outermost is where the thread began.
    pub is_whole: bool,
    /// What the process had mapped then, by its number; 0 if that is not known.
    pub version: u32,
}

impl Unwound {
    /// What is certain if it is this or `other`: the functions that both begin with.
    pub(super) fn common(mut self, other: &Self) -> Self {
        self.is_whole &= *self.places == *other.places && other.is_whole;
        let pairs = self.places.iter().zip(&other.places);
        let equal = pairs.take_while(|(one, other)| one == other).count();
        self.places.truncate(equal);
        self
    }
}

/// What is at an address.
#[derive(Debug)]
pub(super) enum Code<'a> {
    /// The code of a file with tables, the place in it, and what Go tells of its own code there.
    Tables(&'a Tables, u64, Option<&'a GoTable>),
    /// Code that Go has compiled, which keeps frame pointers, and the place in its file.
    Go(&'a GoTable, u64),
    /// Code that keeps frame pointers instead.
    Bare,
    /// Code of which it is not known where it leads.
    Closed,
    /// Nothing that can be run.
    None,
}

impl Code<'_> {
    /// Whether it is of what Go calls where the program does not call.
    fn interrupts(&self) -> bool {
        let frame = match self {
            Self::Tables(_, place, Some(go)) | Self::Go(go, place) => go.frame(*place),
            Self::Tables(_, _, None) | Self::Bare | Self::Closed | Self::None => None,
        };
        frame.is_some_and(|frame| frame.interrupts)
    }
}

/// Follows a stack; `code` tells what is at an address, and `is_return` whether a function may return there.
pub(super) fn unwind<'a>(
    stack: &CopiedStack,
    code: impl Fn(u64) -> Code<'a>,
    is_return: impl Fn(u64) -> bool,
) -> Unwound {
    let mut frame = Frame::of(stack);
    let mut unwound = Unwound {
        places: Vec::new(),
        is_whole: false,
        version: 0,
    };
    let believes =
        |address: u64| is_return(address) && !matches!(code(address.wrapping_sub(1)), Code::None);
    // A return address is one after its call, perhaps in the next function.
    let mut is_call = false;
    while unwound.places.len() < MOST_FRAMES {
        let Some(ip) = frame.registers[RETURN_ADDRESS] else {
            break;
        };
        let place = ip.wrapping_sub(u64::from(is_call));
        let code_of_frame = code(place);
        if is_call && matches!(code_of_frame, Code::None) {
            break;
        }
        unwound.places.push(place);
        let step = match code_of_frame {
            Code::Go(go, place) => frame.leave_go(go.frame(place), &mut is_call, believes),
            Code::Tables(tables, place, go) => match (tables.row(place), go) {
                (Some(row), _) => {
                    is_call = !row.is_signal;
                    frame.by_row(&row, tables, unwound.places.len() == 1)
                }
                (None, Some(go)) => frame.leave_go(go.frame(place), &mut is_call, believes),
                (None, None) if tables.has_framed_code() || frame.is_framed(is_call, &code) => {
                    is_call = true;
                    frame.by_frame_pointer()
                }
                (None, None) => Step::Lost,
            },
            // What the kernel has found goes past that caller, too.
            Code::Bare if frame.is_of_another(&code) => return unwound,
            Code::Bare => {
                is_call = true;
                frame.by_frame_pointer()
            }
            Code::Closed | Code::None => Step::Lost,
        };
        match step {
            Step::Caller => {}
            Step::Claimed(address) if believes(address) => {}
            Step::Root => {
                unwound.is_whole = true;
                break;
            }
            Step::Claimed(_) | Step::Lost => break,
        }
    }
    if !unwound.is_whole {
        go_on(&mut unwound, &stack.walked, code, is_return);
    }
    unwound
}

/// Goes on where a copy ends, on the way that the kernel has found, as long as the code there keeps frame pointers: with
/// stacks that are deeper than a copy, or where Go has changed stacks.
fn go_on<'a>(
    unwound: &mut Unwound,
    walked: &[u64],
    code: impl Fn(u64) -> Code<'a>,
    is_return: impl Fn(u64) -> bool,
) {
    let (&[_, .., last], count) = (unwound.places.as_slice(), unwound.places.len()) else {
        return;
    };
    // That way lacks the caller of an innermost function without a frame.
    let mut both = [count - 1, count - 2].into_iter();
    let Some(met) = both.find(|at| walked.get(*at) == Some(&last.wrapping_add(1))) else {
        return;
    };
    let mut place = last;
    for address in walked.get(met + 1..).unwrap_or_default() {
        let is_framed = match code(place) {
            Code::Bare | Code::Go(..) => true,
            Code::Tables(tables, place, _) => match tables.row(place) {
                Some(row) => row.is_framed(),
                None => tables.has_framed_code(),
            },
            Code::Closed | Code::None => false,
        };
        if !is_framed || unwound.places.len() >= MOST_FRAMES {
            return;
        }
        if *address == 0 {
            unwound.is_whole = true;
            return;
        }
        if !is_return(*address) && !code(place).interrupts() {
            return;
        }
        place = address.wrapping_sub(1);
        if matches!(code(place), Code::None) {
            return;
        }
        unwound.places.push(place);
    }
}

/// Where a step has led.
enum Step {
    /// To the function that called.
    Caller,
    /// To the function that called if the frame pointer is one: to this address.
    Claimed(u64),
    /// To the beginning of the thread.
    Root,
    /// Nowhere that could be believed.
    Lost,
}

/// A function that is being left.
struct Frame<'a> {
    registers: [Option<u64>; REGISTERS],
    begin: u64,
    bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    fn of(stack: &'a CopiedStack) -> Self {
        let registers = KERNEL_ORDER.map(|place| Some(stack.registers[place]));
        Self {
            registers,
            begin: registers[STACK_POINTER].unwrap_or_default(),
            bytes: &stack.bytes,
        }
    }

    /// A word of the stack.
    fn word(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.begin)?).ok()?;
        let bytes = self.bytes.get(at..at.checked_add(8)?)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    /// The innermost function may have taken its return address off the stack, as `vfork` does, whose child would write
    /// over it: then the caller's stack is where its own is.
    fn by_row(&mut self, row: &Row, tables: &Tables, is_innermost: bool) -> Step {
        let Some(cfa) = self.cfa(&row.cfa, tables) else {
            return Step::Lost;
        };
        let mut caller = [None; REGISTERS];
        for register in SAVED {
            caller[register] = self.registers[register];
        }
        caller[STACK_POINTER] = Some(cfa);
        for (register, rule) in &row.registers {
            let register = usize::from(*register);
            if register == RETURN_ADDRESS && *rule == RegisterRule::Undefined {
                return Step::Root;
            }
            if register < REGISTERS {
                caller[register] = self.recover(register, rule, cfa, tables);
            }
        }
        self.call(&caller, is_innermost)
    }

    /// Goes to the caller, which began further up, or here if it `may_be_here`.
    fn call(&mut self, caller: &[Option<u64>; REGISTERS], may_be_here: bool) -> Step {
        let (outer, inner) = (caller[STACK_POINTER], self.registers[STACK_POINTER]);
        let is_further = outer > inner || may_be_here && outer == inner;
        self.registers = *caller;
        match self.registers[RETURN_ADDRESS] {
            // Threads begin with nothing to return to.
            Some(0) => Step::Root,
            Some(_) if is_further => Step::Caller,
            Some(_) | None => Step::Lost,
        }
    }

    /// Whether the frame pointer is this function's own, as far as the stack tells: one without a frame, such as in
    /// assembler, has the return address to its real caller nearer by, and the frame pointer would lead past that.
    fn is_framed<'t>(&self, is_call: bool, code: impl Fn(u64) -> Code<'t>) -> bool {
        let (Some(frame), Some(stack)) =
            (self.registers[FRAME_POINTER], self.registers[STACK_POINTER])
        else {
            return false;
        };
        let is_here = frame.is_multiple_of(8) && self.word(frame).is_some();
        if !is_here || frame < stack {
            return false;
        }
        let others = (stack..frame).step_by(8).enumerate();
        let mut callers = others.filter_map(|(index, at)| Some((index, self.word(at)?)));
        !callers.any(|(index, word)| match code(word.wrapping_sub(1)) {
            Code::Tables(tables, place, _) => {
                tables.row(place).is_some() || !is_call && index < PUSHED
            }
            // Other code keeps frames, so it is the caller only of what has not yet made its own, or never will.
            Code::Bare | Code::Go(..) | Code::Closed => !is_call && index < PUSHED,
            Code::None => false,
        })
    }

    /// Whether the frame pointer is that of a function further out, as far as the stack tells: Java without
    /// `-XX:+PreserveFramePointer` saves it on entry, right below its return address, and does not set its own. What earlier
    /// calls have left looks like that too, so the frame must be one that such code does not have: of Java's interpreter,
    /// which keeps below it where its caller's stack was, or of what other code than made at run time has called.
    fn is_of_another<'t>(&self, code: impl Fn(u64) -> Code<'t>) -> bool {
        let (Some(frame), Some(stack)) =
            (self.registers[FRAME_POINTER], self.registers[STACK_POINTER])
        else {
            return false;
        };
        let is_bare = |address: u64| matches!(code(address.wrapping_sub(1)), Code::Bare);
        let Some(caller) = self.word(frame.wrapping_add(8)) else {
            return false;
        };
        let below = self.word(frame.wrapping_sub(8)).unwrap_or_default();
        let keeps_stack = below > frame.wrapping_add(8) && self.word(below).is_some();
        if is_bare(caller) && !keeps_stack {
            return false;
        }
        let places = (stack..frame).step_by(8);
        let mut pairs =
            places.map_while(|at| Some((self.word(at)?, self.word(at.wrapping_add(8))?)));
        pairs.any(|(saved, address)| saved == frame && is_bare(address))
    }

    /// Leaves a function of Go by its own table, which tells where the return address is: one that was interrupted may have
    /// no frame, or none yet, and some that are written in assembler keep data in the register of frame pointers.
    fn leave_go(
        &mut self,
        frame: Option<GoFrame>,
        is_call: &mut bool,
        believes: impl Fn(u64) -> bool,
    ) -> Step {
        let is_interrupted = !mem::replace(is_call, true);
        // Where Go has changed stacks there is nothing to return to.
        let frame = frame.filter(|frame| frame.has_caller || is_interrupted);
        let stack = self.registers[STACK_POINTER];
        let at = stack
            .zip(frame)
            .map(|(stack, frame)| stack.wrapping_add(frame.depth));
        let Some((at, address)) = at.and_then(|at| Some((at, self.word(at)?))) else {
            return self.by_frame_pointer();
        };
        let own = at.wrapping_sub(8);
        let is_framed = self.registers[FRAME_POINTER] == Some(own);
        if !is_framed && !believes(address) {
            return self.by_frame_pointer();
        }
        let mut caller = [None; REGISTERS];
        caller[FRAME_POINTER] = if is_framed || !self.is_of_caller(at, &believes) {
            self.word(own)
        } else {
            self.registers[FRAME_POINTER]
        };
        caller[STACK_POINTER] = Some(at.wrapping_add(8));
        caller[RETURN_ADDRESS] = Some(address);
        self.call(&caller, false)
    }

    /// Whether the frame pointer is that of a function further out than the return address at `at`.
    fn is_of_caller(&self, at: u64, believes: impl Fn(u64) -> bool) -> bool {
        let frame = self.registers[FRAME_POINTER];
        let is_further = |frame: &u64| *frame > at && frame.is_multiple_of(8);
        let address = frame
            .filter(is_further)
            .map(|frame| self.word(frame.wrapping_add(8)));
        address.is_some_and(|address| address.is_none_or(believes))
    }

    fn by_frame_pointer(&mut self) -> Step {
        let (Some(frame), Some(stack)) =
            (self.registers[FRAME_POINTER], self.registers[STACK_POINTER])
        else {
            return Step::Lost;
        };
        if frame < stack || !frame.is_multiple_of(8) {
            return Step::Lost;
        }
        let (Some(outer), Some(address)) = (self.word(frame), self.word(frame.wrapping_add(8)))
        else {
            return Step::Lost;
        };
        let mut caller = [None; REGISTERS];
        caller[FRAME_POINTER] = Some(outer);
        caller[STACK_POINTER] = Some(frame.wrapping_add(16));
        caller[RETURN_ADDRESS] = Some(address);
        match self.call(&caller, false) {
            Step::Caller => Step::Claimed(address),
            Step::Root if outer == 0 => Step::Root,
            Step::Claimed(_) | Step::Root | Step::Lost => Step::Lost,
        }
    }

    fn cfa(&self, rule: &CfaRule<usize>, tables: &Tables) -> Option<u64> {
        match rule {
            CfaRule::RegisterAndOffset { register, offset } => {
                Some(self.register(*register)?.wrapping_add_signed(*offset))
            }
            CfaRule::Expression(expression) => self.evaluate(expression, tables, None),
        }
    }

    fn register(&self, register: Register) -> Option<u64> {
        *self.registers.get(usize::from(register.0))?
    }

    fn recover(
        &self,
        register: usize,
        rule: &RegisterRule<usize>,
        cfa: u64,
        tables: &Tables,
    ) -> Option<u64> {
        match rule {
            RegisterRule::SameValue => self.registers[register],
            RegisterRule::Offset(offset) => self.word(cfa.wrapping_add_signed(*offset)),
            RegisterRule::ValOffset(offset) => Some(cfa.wrapping_add_signed(*offset)),
            RegisterRule::Register(other) => self.register(*other),
            RegisterRule::Expression(expression) => {
                self.word(self.evaluate(expression, tables, Some(cfa))?)
            }
            RegisterRule::ValExpression(expression) => self.evaluate(expression, tables, Some(cfa)),
            RegisterRule::Constant(value) => Some(*value),
            // Whatever else there may be one day is not known either.
            _ => None,
        }
    }

    fn evaluate(
        &self,
        expression: &UnwindExpression<usize>,
        tables: &Tables,
        initial: Option<u64>,
    ) -> Option<u64> {
        let encoding = Encoding {
            address_size: 8,
            format: Format::Dwarf32,
            version: 4,
        };
        let frames = tables.frames();
        let mut evaluation = expression.get(&frames).ok()?.evaluation(encoding);
        evaluation.set_max_iterations(MOST_STEPS);
        if let Some(initial) = initial {
            evaluation.set_initial_value(initial);
        }
        let mut result = evaluation.evaluate().ok()?;
        loop {
            result = match result {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresMemory {
                    address, size: 8, ..
                } => evaluation
                    .resume_with_memory(Value::Generic(self.word(address)?))
                    .ok()?,
                EvaluationResult::RequiresRegister { register, .. } => evaluation
                    .resume_with_register(Value::Generic(self.register(register)?))
                    .ok()?,
                _ => return None,
            };
        }
        let pieces = evaluation.as_result();
        match pieces.first()?.location {
            Location::Address { address } => Some(address),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where code without tables is, in a file that has some; code with tables; and code made at run time.
    const HOLE: u64 = 0x1_0000;
    const TABLED: u64 = 0x2_0000;
    const JIT: u64 = 0x3_0000;
    const CLOSED: u64 = 0x4_0000;
    const STACK: u64 = 0x7000;

    /// How many functions are found from a place without tables, with the frame pointer at the fifth word and this below it.
    fn followed(below: [u64; 4]) -> usize {
        let tables = Tables::of_vdso().unwrap();
        assert!(!tables.has_framed_code());
        let mut offsets = 0..0x2000;
        let known = offsets.find(|offset| tables.row(*offset).is_some());
        let words = [&below[..], &[0, JIT + 1]].concat();
        let stack = copied(&words, &[], STACK + 32, HOLE);
        let unwound = unwind(
            &stack,
            |address| match address {
                HOLE => Code::Tables(&tables, 0, None),
                TABLED => Code::Tables(&tables, known.unwrap(), None),
                JIT => Code::Bare,
                _ => Code::None,
            },
            |_address| true,
        );
        assert_eq!(unwound.places[0], HOLE);
        unwound.places.len()
    }

    /// Whether the step leads to the caller out of a function whose frame begins at the stack pointer, and whose return
    /// address is in a register.
    fn leaves_by_register(is_innermost: bool) -> bool {
        const RDI: u16 = 5;
        let mut stack = CopiedStack {
            registers: [0; 21],
            bytes: vec![0; 64],
            walked: Vec::new(),
            taken: Taken::default(),
        };
        stack.registers[KERNEL_ORDER[STACK_POINTER]] = STACK;
        stack.registers[KERNEL_ORDER[usize::from(RDI)]] = TABLED;
        let row = Row {
            cfa: CfaRule::RegisterAndOffset {
                register: Register(7),
                offset: 0,
            },
            registers: vec![(16, RegisterRule::Register(Register(RDI)))],
            is_signal: false,
        };
        let mut frame = Frame::of(&stack);
        let step = frame.by_row(&row, &Tables::of_vdso().unwrap(), is_innermost);
        matches!(step, Step::Caller) && frame.registers[RETURN_ADDRESS] == Some(TABLED)
    }

    #[test]
    fn vfork_keeps_its_return_address_in_a_register() {
        assert!(leaves_by_register(true));
        // Further out that would go on for ever.
        assert!(!leaves_by_register(false));
    }

    #[test]
    fn code_without_tables_among_others_is_left_by_its_frame() {
        assert_eq!(followed([0, 1, STACK, u64::MAX]), 2);
        // Of what it called before.
        assert_eq!(followed([0, 1, 2, JIT + 1]), 2);
    }

    #[test]
    fn where_another_caller_is_nearer_the_frame_is_not_followed() {
        assert_eq!(followed([0, 1, 2, TABLED + 1]), 1);
        assert_eq!(followed([JIT + 1, 0, 0, 0]), 1);
        // The caller's frame pointer was pushed, and not replaced yet.
        assert_eq!(followed([STACK + 32, JIT + 1, 0, 0]), 1);
    }

    /// A stack of these words that the kernel has walked like this, with the frame pointer, of a thread that is at `place`.
    fn copied(words: &[u64], walked: &[u64], frame: u64, place: u64) -> CopiedStack {
        let mut stack = CopiedStack {
            registers: [0; 21],
            bytes: words.iter().flat_map(|word| word.to_le_bytes()).collect(),
            walked: walked.to_vec(),
            taken: Taken::default(),
        };
        stack.registers[KERNEL_ORDER[STACK_POINTER]] = STACK;
        stack.registers[KERNEL_ORDER[FRAME_POINTER]] = frame;
        stack.registers[KERNEL_ORDER[RETURN_ADDRESS]] = place;
        stack
    }

    /// What code there is.
    fn bare_or_closed(address: u64) -> Code<'static> {
        match address {
            JIT..0x3_1000 => Code::Bare,
            CLOSED => Code::Closed,
            _ => Code::None,
        }
    }

    /// Whether code made at run time that was called from `caller` is left by its frame pointer, at the fifth word, with
    /// this below it.
    fn is_left(below: [u64; 4], caller: u64) -> bool {
        let words = [&below[..], &[0, caller + 1, 0]].concat();
        let stack = copied(&words, &[JIT, caller + 1, 0], STACK + 32, JIT);
        let unwound = unwind(&stack, bare_or_closed, |_address| true);
        unwound.places == [JIT, caller]
    }

    #[test]
    fn the_frame_of_another_function_leads_past_the_caller() {
        let (frame, senders) = (STACK + 32, STACK + 48);
        let caller = JIT + 20;
        assert!(is_left([0, 1, 2, senders], caller));
        assert!(is_left([0, 1, 2, 3], CLOSED));
        // Saved, and not replaced by a function that the interpreter called, or what native code did.
        assert!(!is_left([frame, JIT + 11, 2, senders], caller));
        assert!(!is_left([0, frame, JIT + 11, 3], CLOSED));
        // Left by what was called before.
        assert!(is_left([frame, JIT + 11, 2, 3], caller));
        assert!(is_left([STACK + 8, JIT + 11, 2, senders], caller));
    }

    /// Whether code made at run time is left by its frame pointer, with this above its frame, if functions return to one
    /// address only.
    fn is_left_to(address: u64, outer: u64) -> (usize, bool) {
        let words = [outer, address];
        let stack = copied(&words, &[JIT, address, JIT + 41, 0], STACK, JIT);
        let code = |address| match address {
            JIT..0x3_1000 => Code::Bare,
            _ => Code::None,
        };
        let unwound = unwind(&stack, code, |address| address == JIT + 21);
        (unwound.places.len(), unwound.is_whole)
    }

    #[test]
    fn what_is_no_return_address_is_no_caller() {
        assert_eq!(is_left_to(JIT + 21, STACK + 4096), (2, false));
        // Where a function begins, for one.
        assert_eq!(is_left_to(JIT + 16, STACK + 4096), (1, false));
        // Nothing to return to is the beginning of a thread only where nothing is further out.
        assert_eq!(is_left_to(0, 0), (1, true));
        assert_eq!(is_left_to(0, STACK + 4096), (1, false));
    }

    /// Where a function of Go with a frame of 16 bytes is left to, and its caller's frame pointer, if the register has
    /// this.
    fn go_caller(pointer: u64, has_caller: bool) -> Option<(u64, Option<u64>)> {
        let words = [1, STACK + 32, JIT + 11, 2, STACK + 48, JIT + 21, 0, 0];
        let stack = copied(&words, &[], pointer, 0);
        let mut frame = Frame::of(&stack);
        let of_function = GoFrame {
            depth: 16,
            has_caller,
            interrupts: false,
        };
        let step = frame.leave_go(Some(of_function), &mut true, |address| address > JIT);
        let is_certain = matches!(step, Step::Caller);
        is_certain.then_some((
            frame.registers[RETURN_ADDRESS]?,
            frame.registers[FRAME_POINTER],
        ))
    }

    #[test]
    fn functions_of_go_that_keep_data_in_the_frame_pointer_have_their_caller() {
        let caller = Some((JIT + 11, Some(STACK + 32)));
        assert_eq!(go_caller(STACK + 8, true), caller);
        for data in [0, 7, STACK, STACK + 40, STACK + 48] {
            assert_eq!(go_caller(data, true), caller, "{data:x}");
        }
        // The function had not saved it yet.
        assert_eq!(go_caller(STACK + 32, true), caller);
        // On another stack there is no caller.
        assert_eq!(go_caller(7, false), None);
    }

    /// The places after the first of a stack of bare code whose copy ends after two callers, walked like this by the kernel;
    /// and whether it is whole.
    fn walked_on(walked: &[u64]) -> (Vec<u64>, bool) {
        let words = [STACK + 16, JIT + 11, STACK + 4096, JIT + 21];
        let stack = copied(&words, walked, STACK, JIT);
        let unwound = unwind(&stack, bare_or_closed, |_address| true);
        let after = unwound.places.iter().skip(1).map(|place| place - JIT);
        (after.collect(), unwound.is_whole)
    }

    #[test]
    fn where_a_copy_ends_the_kernel_has_gone_on() {
        let [one, two, three] = [JIT + 11, JIT + 21, JIT + 31];
        assert_eq!(walked_on(&[]), (vec![10, 20], false));
        let whole = (vec![10, 20, 30], true);
        assert_eq!(walked_on(&[JIT, one, two, three, 0]), whole);
        // The innermost function had no frame.
        assert_eq!(walked_on(&[JIT, two, three, 0]), whole);
        // It was cut too.
        assert_eq!(
            walked_on(&[JIT, one, two, three]),
            (vec![10, 20, 30], false)
        );
        // Another stack, and code of which nothing is known.
        let cut = (vec![10, 20], false);
        assert_eq!(walked_on(&[JIT, one, three, three, 0]), cut);
        assert_eq!(walked_on(&[JIT, one, two, 7, three, 0]), cut);
        let closed = [JIT, one, two, CLOSED + 1, three, 0];
        assert_eq!(walked_on(&closed), (vec![10, 20, CLOSED - JIT], false));
    }
}
