//! Inline PTX as calls of the functions of `emulator.h`.

/// The inline PTX instructions that kernels may use, in the only accepted spelling, and the
/// function of `emulator.h` that emulates each.
const INSTRUCTIONS: [(&str, &str); 14] = [
    (
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};",
        "emu::mma",
    ),
    ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];", "emu::ldmatrix_x4"),
    (
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];",
        "emu::ldmatrix_x4_trans",
    ),
    ("cp.async.cg.shared.global [%0], [%1], 16, %2;", "emu::cp_async_16"),
    ("cp.async.commit_group;", "emu::cp_async_commit"),
    ("cp.async.wait_group 0;", "emu::cp_async_wait<0>"),
    ("cp.async.wait_group 1;", "emu::cp_async_wait<1>"),
    ("fence.proxy.async.shared::cta;", "emu::publish"),
    ("cvt.rn.bf16x2.f32 %0, %1, %2;", "emu::cvt_bf16x2"),
    ("st.shared.b32 [%0], %1;", "emu::store_shared"),
    ("st.shared.v4.f32 [%0], {%1, %2, %3, %4};", "emu::store_shared_v4"),
    ("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];", "emu::load_shared_v4"),
    ("ex2.approx.ftz.f32 %0, %1;", "emu::ex2"),
    ("red.global.add.v2.f32 [%0], {%1, %2};", "emu::red_add_v2"),
];

/// Replaces every `asm` statement by calls of the functions that emulate its instructions.
pub(super) fn replace_asm(text: &str, kernel: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("asm ").into_iter().chain(rest.find("asm volatile(")).min() {
        out.push_str(&rest[..start]);
        let end = start + rest[start..].find(");").unwrap() + 2;
        out.push_str(&calls(&rest[start..end], kernel));
        rest = &rest[end..];
    }
    out + rest
}

/// The calls for one `asm` statement: one instruction, or a block of instructions that declares
/// registers of its own.
fn calls(statement: &str, kernel: &str) -> String {
    let open = statement.find('"').unwrap() + 1;
    let close = open + statement[open..].find('"').unwrap();
    let template = statement[open..close].replace("\\n", " ");
    let operands: Vec<&str> = statement[close + 1..]
        .split('"')
        .filter_map(|part| part.strip_prefix('('))
        .map(|part| {
            let mut depth = 1;
            let end = part.find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                depth == 0
            });
            &part[..end.unwrap_or_else(|| panic!("{kernel}: {statement}"))]
        })
        .collect();
    if let Some(block) = template.strip_prefix("{ ").and_then(|text| text.strip_suffix('}')) {
        let known: Option<String> =
            block.split(';').map(|statement| in_block(statement.trim(), &operands)).collect();
        let calls = known.unwrap_or_else(|| panic!("{kernel}: no emulation of `{template}`"));
        return format!("{{ {calls}emu::warpgroup_end(); }}");
    }
    let known = INSTRUCTIONS.iter().find(|(text, _)| *text == template);
    let (_, function) = known.unwrap_or_else(|| panic!("{kernel}: no emulation of `{template}`"));
    format!("{function}({});", operands.join(", "))
}

/// One statement of a block in C++; `None` if it is unknown. Registers keep their names.
fn in_block(statement: &str, operands: &[&str]) -> Option<String> {
    let statement = match statement.split_once("/*") {
        Some((before, rest)) => format!("{before}{}", rest.split_once("*/")?.1),
        None => statement.to_owned(),
    };
    let statement = statement.trim();
    if statement.is_empty() {
        return Some(String::new());
    }
    let (name, arguments) = statement.split_once(' ').unwrap_or((statement, ""));
    if name == ".reg" {
        let (kind, names) = arguments.split_once(' ')?;
        let kind = match kind {
            ".pred" => "bool",
            ".b64" => "uint64_t",
            _ => return None,
        };
        return Some(format!("{kind} {names}; "));
    }
    let arguments = values(arguments, operands)?;
    let arguments: Vec<&[String]> = arguments.iter().map(Vec::as_slice).collect();
    Some(match (name, arguments.as_slice()) {
        ("mov.f32", [[to], [from]]) => format!("emu::warpgroup_move(); {to} = {from}; "),
        ("mov.b64", [[to], [low, high]]) => format!("{to} = (uint64_t){high}u << 32 | {low}; "),
        ("add.s64", [[to], [a], [b]]) => format!("{to} = {a} + {b}; "),
        ("setp.ne.b32", [[to], [a], [b]]) => format!("{to} = {a} != {b}; "),
        ("wgmma.fence.sync.aligned", []) => "emu::warpgroup_fence(); ".to_owned(),
        ("wgmma.commit_group.sync.aligned", []) => "emu::warpgroup_commit(); ".to_owned(),
        ("wgmma.wait_group.sync.aligned", [[pending]]) if pending == "0" => {
            "emu::warpgroup_wait(); ".to_owned()
        }
        (name, [d, a, [b], [add], [one], [same], transposed @ ..])
            if name.starts_with("wgmma.mma_async.sync.aligned.m64n")
                && name.ends_with("k16.f32.bf16.bf16")
                && one == "1"
                && same == "1" =>
        {
            let columns = d.len() * 2;
            if !name.contains(&format!("m64n{columns}k16")) {
                return None;
            }
            let sums: Vec<String> = d.iter().map(|x| format!("&({x})")).collect();
            let left = match (*a, transposed) {
                ([a0, a1, a2, a3], [_]) => format!("emu::left({a0}, {a1}, {a2}, {a3})"),
                ([a], [[a_turned], [_]]) => format!("emu::left({a}, {a_turned})"),
                _ => return None,
            };
            let [.., [turned]] = transposed else { return None };
            let sums = sums.join(", ");
            format!(
                "{{ float* sums[] = {{{sums}}}; emu::multiply({columns}, sums, {left}, {b}, {turned}, {add}); }} "
            )
        }
        _ => return None,
    })
}

/// The arguments of an instruction, each a register or a vector of them, with operands (`%3`)
/// replaced by what the kernel names.
fn values(arguments: &str, operands: &[&str]) -> Option<Vec<Vec<String>>> {
    let mut out: Vec<Vec<String>> = Vec::new();
    let mut in_vector = false;
    for part in arguments.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let name = part.trim_matches(['{', '}']);
        let value = match name.strip_prefix('%') {
            Some(number) => (*operands.get(number.parse::<usize>().ok()?)?).to_owned(),
            None => name.to_owned(),
        };
        match out.last_mut() {
            Some(vector) if in_vector => vector.push(value),
            _ => out.push(vec![value]),
        }
        in_vector = (in_vector || part.starts_with('{')) && !part.ends_with('}');
    }
    Some(out)
}
