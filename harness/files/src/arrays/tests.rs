//! Round trips, refusals and hostile files.

use ndarray::IxDyn;
use proptest::prelude::*;

use super::npz::write_npy;
use super::*;

fn sample() -> Vec<(&'static str, Array)> {
    let f = |shape: &[usize]| IxDyn(shape);
    vec![
        ("codes", Array::I64(ArrayD::from_shape_fn(f(&[2, 3]), |i| i[0] as i64 * -7 + i[1] as i64))),
        ("image", Array::F32(ArrayD::from_shape_fn(f(&[2, 2, 2]), |i| i[0] as f32 - 0.5 * i[2] as f32))),
        ("mu", Array::F64(ArrayD::from_elem(f(&[4]), std::f64::consts::PI))),
        ("tokens", Array::I32(ArrayD::from_elem(f(&[]), i32::MIN))),
        ("bytes", Array::U8(ArrayD::from_shape_fn(f(&[5]), |i| i[0] as u8 * 50))),
        ("none", Array::F32(ArrayD::zeros(f(&[0, 7])))),
    ]
}

fn refs<'a>(arrays: &'a [(&'static str, Array)]) -> Vec<(&'static str, ArrayRef<'a>)> {
    arrays.iter().map(|(n, a)| (*n, a.into())).collect()
}

fn npy_bytes(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let text = format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.as_bytes());
    out.extend(data);
    out
}

/// Opens `bytes` as a file of this name and reads everything in it.
fn read_all(name: &str, bytes: &[u8]) -> Result<Vec<Array>, ArrayError> {
    let (_guard, folder) = test_folder();
    let path = folder.join(name);
    fs_err::write(&path, bytes).unwrap();
    let file = ArrayFile::open(&path)?;
    file.arrays().iter().map(|a| file.get(&a.name)).collect()
}

#[test]
fn rows_come_a_few_at_a_time_from_every_format() {
    let (_guard, folder) = test_folder();
    let all: Vec<f32> = (0..7 * 6).map(|i| i as f32 * 0.5).collect();
    let shape = [7, 2, 3];
    let array = ArrayRef::f32(&shape, &all);
    let (npz, npy, tensors) = (folder.join("a.npz"), folder.join("x.npy"), folder.join("a.safetensors"));
    write_npz(&npz, &[("x", array), ("y", array)]).unwrap();
    write_npy(&npy, &array).unwrap();
    write_safetensors(&tensors, &[("x", array), ("y", array)]).unwrap();
    // The same elements column-major, as bytes of another type, and deflated.
    let turned: Vec<u8> =
        (0..7 * 6).flat_map(|i| all[i % 7 * 6 + i / 7 % 2 * 3 + i / 14].to_le_bytes()).collect();
    let columns = folder.join("columns.npy");
    fs_err::write(&columns, npy_bytes("'<f4'", "True", "(7, 2, 3)", &turned)).unwrap();
    let bytes = folder.join("bytes.npy");
    let small: Vec<u8> = (0..42).collect();
    write_npy(&bytes, &ArrayRef::u8(&shape, &small)).unwrap();
    let deflated = folder.join("deflated.npz");
    let mut zip = zip::ZipWriter::new(fs_err::File::create(&deflated).unwrap());
    zip.start_file("x.npy", zip::write::SimpleFileOptions::default()).unwrap();
    std::io::Write::write_all(&mut zip, &fs_err::read(&npy).unwrap()).unwrap();
    zip.finish().unwrap();
    for (path, name) in [
        (&npz, "x"),
        (&npy, "x"),
        (&tensors, "y"),
        (&columns, "columns"),
        (&bytes, "bytes"),
        (&deflated, "x"),
    ] {
        let file = ArrayFile::open(path).unwrap();
        let whole: Vec<f32> = file.f32(name, &[None; 3]).unwrap().iter().copied().collect();
        for rows in [1, 3, 7, 100] {
            let (mut found, mut sizes) = (Vec::new(), Vec::new());
            file.f32_rows(name, &[None, Some(2), Some(3)], rows, &mut |part| {
                found.extend_from_slice(part);
                sizes.push(part.len() / 6);
                Ok::<_, ArrayError>(())
            })
            .unwrap();
            assert_eq!(found, whole, "{path}");
            assert_eq!((sizes[0], sizes.len()), (rows.min(7), 7_usize.div_ceil(rows)), "{path}");
        }
        let wrong = file.f32_rows::<ArrayError>(name, &[Some(8), None, None], 1, &mut |_| panic!("not fit"));
        assert!(wrong.unwrap_err().to_string().contains("[8, any, any]"));
    }
    assert_eq!(ArrayFile::open(&columns).unwrap().f32("columns", &[None; 3]).unwrap(), {
        ArrayFile::open(&npy).unwrap().f32("x", &[None; 3]).unwrap()
    });
    // A checksum that does not match is found, if only behind the last row.
    let mut damaged = fs_err::read(&npz).unwrap();
    let at = damaged.windows(4).position(|w| w == 20.5_f32.to_le_bytes()).unwrap();
    damaged[at] ^= 1;
    fs_err::write(&npz, damaged).unwrap();
    let file = ArrayFile::open(&npz).unwrap();
    let read = file.f32_rows::<ArrayError>("x", &[None; 3], 2, &mut |_| Ok(()));
    assert!(matches!(read.unwrap_err().kind, ArrayErrorKind::Malformed(_)));
}

#[test]
fn a_stream_writes_the_bytes_of_the_whole() {
    let (_guard, folder) = test_folder();
    let (whole, streamed) = (folder.join("whole.npz"), folder.join("streamed.npz"));
    let (values, more) = ([1.5_f32; 12], [7_i64; 3]);
    let (shape, three) = ([4, 3], [3]);
    let second = ("b", ArrayRef::i64(&three, &more));
    write_npz(&whole, &[("a", ArrayRef::f32(&shape, &values)), second]).unwrap();
    let start = || NpzStream::f32(&streamed, "a", &shape).unwrap();
    let mut stream = start();
    for part in values.chunks(5) {
        stream.push(Elements::F32(part)).unwrap();
    }
    assert!(
        stream
            .push(Elements::F32(&values[..1]))
            .unwrap_err()
            .to_string()
            .contains("1 float32 behind 12 of 12")
    );
    stream.finish_with(&[second]).unwrap();
    assert_eq!(fs_err::read(&streamed).unwrap(), fs_err::read(&whole).unwrap());
    fs_err::remove_file(&streamed).unwrap();
    let mut stream = start();
    assert!(stream.push(Elements::I64(&more)).is_err());
    stream.push(Elements::F32(&values[..4])).unwrap();
    assert!(stream.finish_with(&[]).unwrap_err().to_string().contains("4 of the announced 12"));
    let mut stream = start();
    stream.push(Elements::F32(&values)).unwrap();
    let twice = ("a", ArrayRef::i64(&three, &more));
    assert!(stream.finish_with(&[twice]).unwrap_err().to_string().contains("given twice"));
    assert!(!streamed.exists());
}

#[test]
fn a_spool_gives_back_its_values_and_leaves_nothing() {
    let (_guard, folder) = test_folder();
    let mut spool = Spool::create_in(&folder).unwrap();
    for i in 0..5_u8 {
        spool.push(Elements::F32(&[f32::from(i), 0.5])).unwrap();
    }
    let spooled = spool.finish().unwrap();
    assert_eq!(spooled.f32().unwrap(), [0.0, 0.5, 1.0, 0.5, 2.0, 0.5, 3.0, 0.5, 4.0, 0.5]);
    assert_eq!(spooled.bytes().len(), 40);
    drop(spooled);
    assert_eq!(fs_err::read_dir(&folder).unwrap().count(), 0);
}

fn npy_error(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> String {
    read_all("x.npy", &npy_bytes(descr, fortran, shape, data)).unwrap_err().to_string()
}

#[test]
fn arrays_survive_each_format_and_bytes_repeat() {
    let (_guard, folder) = test_folder();
    let arrays = sample();
    for (name, write) in
        [("a.npz", write_npz as fn(&Utf8Path, &[_]) -> _), ("a.safetensors", write_safetensors)]
    {
        let (path, again) = (folder.join(name), folder.join(format!("again-{name}")));
        write(&path, &refs(&arrays)).unwrap();
        write(&again, &refs(&arrays)).unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), fs_err::read(&again).unwrap(), "{name}");
        let file = ArrayFile::open(&path).unwrap();
        assert_eq!(file.arrays().len(), arrays.len());
        for (array_name, array) in &arrays {
            assert_eq!(&file.get(array_name).unwrap(), array, "{name}: {array_name}");
            let info = file.info(array_name).unwrap();
            assert_eq!((info.dtype.as_str(), info.shape.as_slice()), (array.dtype(), array.shape()));
        }
    }
    for (name, array) in &arrays {
        let path = folder.join(format!("{name}.npy"));
        write_npy(&path, &array.into()).unwrap();
        assert_eq!(&ArrayFile::open(&path).unwrap().get(name).unwrap(), array);
    }
}

#[test]
fn npz_members_keep_their_order_and_carry_no_time() {
    let (_guard, folder) = test_folder();
    let path = folder.join("a.npz");
    write_npz(&path, &refs(&sample())).unwrap();
    let names: Vec<String> =
        ArrayFile::open(&path).unwrap().arrays().iter().map(|a| a.name.clone()).collect();
    assert_eq!(names, ["codes", "image", "mu", "tokens", "bytes", "none"]);
    let mut zip = zip::ZipArchive::new(fs_err::File::open(&path).unwrap()).unwrap();
    let member = zip.by_index(0).unwrap();
    assert_eq!(member.last_modified(), Some(zip::DateTime::default()));
    assert_eq!(member.compression(), zip::CompressionMethod::Stored);
}

#[test]
fn the_npy_header_is_the_one_numpy_writes() {
    let bytes = npy::header_bytes(NpyType::U8, &[10, 32, 32, 3]).unwrap();
    assert_eq!(bytes.len(), 128);
    let text = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (10, 32, 32, 3), }";
    assert_eq!(&bytes[..text.len()], text);
    assert_eq!(bytes.last(), Some(&b'\n'));
    let one = npy::header_bytes(NpyType::F32, &[3]).unwrap();
    assert!(String::from_utf8_lossy(&one).contains("'shape': (3,), }"));
    let scalar = npy::header_bytes(NpyType::F32, &[]).unwrap();
    assert!(String::from_utf8_lossy(&scalar).contains("'shape': (), }"));
}

#[test]
fn deflated_archives_of_numpy_are_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/emoji32/streams_dpar.safetensors");
    let file = ArrayFile::open(path).unwrap();
    let margin = file.f32("margin", &[Some(1024), Some(64)]).unwrap();
    // The same numbers through a deflated archive.
    let (_guard, folder) = test_folder();
    let plain = folder.join("plain.npy");
    let array = Array::F32(margin);
    write_npy(&plain, &(&array).into()).unwrap();
    let packed = folder.join("packed.npz");
    let mut zip = zip::ZipWriter::new(fs_err::File::create(&packed).unwrap());
    let deflated =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    zip.start_file("readme.txt", deflated).unwrap();
    zip.start_file("margin.npy", deflated).unwrap();
    std::io::Write::write_all(&mut zip, &fs_err::read(&plain).unwrap()).unwrap();
    zip.finish().unwrap();
    let file = ArrayFile::open(&packed).unwrap();
    assert_eq!(file.arrays().len(), 1, "members that are no arrays are passed over");
    assert_eq!(file.get("margin").unwrap(), array);
}

#[test]
fn fortran_order_becomes_row_major() {
    let data: Vec<u8> = (0..6).collect();
    let arrays = read_all("x.npy", &npy_bytes("'|u1'", "True", "(2, 3)", &data)).unwrap();
    let Array::U8(a) = &arrays[0] else { panic!("{arrays:?}") };
    assert_eq!(a.as_slice().unwrap(), [0, 2, 4, 1, 3, 5]);
}

#[test]
fn other_headers_of_numpy_are_read() {
    let mut v2 = b"\x93NUMPY\x02\x00".to_vec();
    let text = "{\"shape\": (2L,), 'descr':'|u1','fortran_order':False}";
    v2.extend((text.len() as u32).to_le_bytes());
    v2.extend(text.as_bytes());
    v2.extend([7, 8]);
    let arrays = read_all("x.npy", &v2).unwrap();
    assert_eq!(arrays[0].to_i64("x").unwrap().as_slice().unwrap(), [7, 8]);
}

#[test]
fn element_types_that_are_not_read_are_named_and_do_not_hide_the_rest() {
    for (descr, why) in [
        ("'|O'", "pickled Python objects"),
        ("'>f4'", "big-endian"),
        ("'<c8'", "not supported"),
        ("'<u8'", "not supported"),
        ("[('a', '<f4', (2, 3)), ('b', '|O')]", "records"),
    ] {
        let error = npy_error(descr, "False", "(1,)", &[0; 8]);
        assert!(error.contains(why) && error.contains("x.npy: array `x`"), "{error}");
    }
    let (_guard, folder) = test_folder();
    let path = folder.join("x.npy");
    fs_err::write(&path, npy_bytes("'|O'", "False", "(3,)", &[0; 8])).unwrap();
    assert_eq!(ArrayFile::open(&path).unwrap().info("x").unwrap().dtype, "|O", "listed all the same");
}

#[test]
fn headers_that_promise_too_much_are_refused_before_memory_is_taken() {
    let cases = [
        ("'<f4'", "(1000000000000,)", "truncated: 4000000000000 bytes are promised, 8 are there"),
        ("'<f8'", "(4611686018427387904, 4)", "too large"),
        ("'|u1'", "(0, 9223372036854775807, 9223372036854775807)", "too large"),
        ("'|u1'", "(99999999999999999999,)", "too large"),
        ("'<f4'", "(3,)", "truncated: 12 bytes are promised, 8 are there"),
    ];
    for (descr, shape, want) in cases {
        let error = npy_error(descr, "False", shape, &[0; 8]);
        assert!(error.contains(want), "{shape}: {error}");
    }
    let dims = format!("({})", "1,".repeat(65));
    assert!(npy_error("'|u1'", "False", &dims, &[0; 8]).contains("dimensions"));
    let mut long = b"\x93NUMPY\x02\x00".to_vec();
    long.extend(u32::MAX.to_le_bytes());
    assert!(read_all("x.npy", &long).unwrap_err().to_string().contains("too large"));
    let nested = format!("{}'|u1'", "[(".repeat(20_000));
    assert!(npy_error(&nested, "False", "(1,)", &[0]).contains("bracket"), "nesting does not recurse");
}

#[test]
fn a_member_that_promises_more_than_its_archive_can_hold_is_refused() {
    let (_guard, folder) = test_folder();
    let path = folder.join("x.npz");
    let mut zip = zip::ZipWriter::new(fs_err::File::create(&path).unwrap());
    zip.start_file("x.npy", zip::write::SimpleFileOptions::default()).unwrap();
    let member = npy_bytes("'<f4'", "False", "(1000000000,)", &[0; 40]);
    std::io::Write::write_all(&mut zip, &member).unwrap();
    zip.finish().unwrap();
    let error = ArrayFile::open(&path).unwrap().get("x").unwrap_err();
    assert!(matches!(error.kind, ArrayErrorKind::Truncated { promised: 4_000_000_000, held: 40 }), "{error}");
}

#[test]
fn a_damaged_member_is_found_by_its_checksum() {
    let (_guard, folder) = test_folder();
    let path = folder.join("x.npz");
    let data = [1.25_f32; 100];
    write_npz(&path, &[("x", ArrayRef::f32(&[100], &data))]).unwrap();
    let mut bytes = fs_err::read(&path).unwrap();
    let at = bytes.windows(4).position(|w| w == data[0].to_le_bytes()).unwrap();
    bytes[at] ^= 1;
    let error = read_all("x.npz", &bytes).unwrap_err();
    assert!(matches!(error.kind, ArrayErrorKind::Malformed(_)), "{error}");
}

#[test]
fn safetensors_headers_are_checked_against_the_file() {
    let file = |json: &str, data: usize| {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        read_all("x.safetensors", &bytes).map(|a| a.len()).map_err(|e| e.to_string())
    };
    let f32x2 = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    assert_eq!(file(f32x2, 8), Ok(1));
    assert!(file(f32x2, 7).unwrap_err().contains("truncated"));
    assert!(file(f32x2, 9).unwrap_err().contains("belong to no array"));
    let f8 = r#"{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}"#;
    assert!(file(f8, 2).unwrap_err().contains("F8_E4M3 cannot be read"));
    let lie = r#"{"a":{"dtype":"U8","shape":[9999999999],"data_offsets":[0,9999999999]}}"#;
    assert!(file(lie, 8).unwrap_err().contains("truncated"));
    let zero = r#"{"a":{"dtype":"U8","shape":[18446744073709551615,0],"data_offsets":[0,0]}}"#;
    assert!(file(zero, 0).unwrap_err().contains("too large"));
    assert!(read_all("x.safetensors", &u64::MAX.to_le_bytes()).is_err());
}

#[test]
fn shapes_and_types_are_required_and_widened_without_loss() {
    let (_guard, folder) = test_folder();
    let path = folder.join("in.npz");
    write_npz(&path, &refs(&sample())).unwrap();
    let file = ArrayFile::open(&path).unwrap();
    assert_eq!(file.i64("bytes", &[Some(5)]).unwrap()[[4]], 200);
    assert_eq!(file.f32("bytes", &[None]).unwrap()[[4]], 200.0);
    assert_eq!(file.f64("image", &[None, None, Some(2)]).unwrap()[[1, 0, 1]], 0.5);
    assert_eq!(file.u8("bytes", &[None]).unwrap().len(), 5);
    assert_eq!(file.i64("tokens", &[]).unwrap().len(), 1);
    let message = |e: ArrayError| e.to_string();
    assert_eq!(
        message(file.require("codes", &[Some(4), None]).unwrap_err()),
        format!("{path}: array `codes`: shape [2, 3] where [4, any] is wanted (int64)")
    );
    assert_eq!(
        message(file.f32("codes", &[None, None]).unwrap_err()),
        format!("{path}: array `codes`: int64 elements of shape [2, 3] do not fit float32 without loss")
    );
    assert!(message(file.f32("tokens", &[]).unwrap_err()).contains("int32 elements"));
    assert!(message(file.i64("mu", &[None]).unwrap_err()).contains("float64 elements"));
    assert!(message(file.u8("mu", &[None]).unwrap_err()).contains("float64 elements"));
    let missing = message(file.get("nothing").unwrap_err());
    assert!(missing.contains("`nothing`") && missing.contains("`codes`, `image`, `mu`"), "{missing}");
}

#[test]
fn narrow_elements_become_the_next_type_that_holds_them() {
    // 1, −2, 0.5, 65504 (or the number nearest to it) and a NaN; −1 as each integer type has it.
    let half: Vec<u8> =
        [0x3c00_u16, 0xc000, 0x3800, 0x7bff, 0x7e00].iter().flat_map(|b| b.to_le_bytes()).collect();
    let brain: Vec<u8> =
        [0x3f80_u16, 0xc000, 0x3f00, 0x4780, 0x7fc0].iter().flat_map(|b| b.to_le_bytes()).collect();
    let ends = [0, 1, 0x7f, 0x80, 0xff];
    let words: Vec<u8> = [0, 1, 0x7fff, 0x8000, 0xffff_u16].iter().flat_map(|b| b.to_le_bytes()).collect();
    let longs: Vec<u8> = [0, 1, 5, 1 << 31, u32::MAX].iter().flat_map(|b| b.to_le_bytes()).collect();
    let integers = [
        ("|i1", "I8", "int8", &ends[..], [0, 1, 127, -128, -1]),
        ("<i2", "I16", "int16", &words, [0, 1, 32_767, -32_768, -1]),
        ("<u2", "U16", "uint16", &words, [0, 1, 32_767, 32_768, 65_535]),
        ("<u4", "U32", "uint32", &longs, [0, 1, 5, 1 << 31, 4_294_967_295]),
    ];
    let (_guard, folder) = test_folder();
    let files = |descr: &str, dtype: &str, bytes: &[u8]| {
        let (npy, npz, tensors) = (folder.join("x.npy"), folder.join("x.npz"), folder.join("x.safetensors"));
        let header =
            format!("{{\"x\":{{\"dtype\":\"{dtype}\",\"shape\":[5],\"data_offsets\":[0,{}]}}}}", bytes.len());
        let mut whole = (header.len() as u64).to_le_bytes().to_vec();
        whole.extend(header.bytes().chain(bytes.iter().copied()));
        fs_err::write(&tensors, whole).unwrap();
        // Numpy has no bfloat16.
        if descr.is_empty() {
            return vec![tensors];
        }
        let member = npy_bytes(&format!("'{descr}'"), "False", "(5,)", bytes);
        fs_err::write(&npy, &member).unwrap();
        let mut zip = zip::ZipWriter::new(fs_err::File::create(&npz).unwrap());
        zip.start_file("x.npy", zip::write::SimpleFileOptions::default()).unwrap();
        std::io::Write::write_all(&mut zip, &member).unwrap();
        zip.finish().unwrap();
        vec![npy, npz, tensors]
    };
    for (descr, dtype, name, bytes, want) in integers {
        for path in files(descr, dtype, bytes) {
            let file = ArrayFile::open(&path).unwrap();
            assert_eq!(file.info("x").unwrap().dtype, name);
            assert_eq!(file.i64("x", &[Some(5)]).unwrap().as_slice().unwrap(), want, "{path}");
            // The message has the type of the file, and not the one in memory.
            let error = file.f32("x", &[None]).unwrap_err().to_string();
            assert!(error.contains(&format!("{name} elements of shape [5] do not fit float32")), "{error}");
        }
    }
    for (descr, dtype, name, bytes, large) in
        [("<f2", "F16", "float16", &half, 65504.0), ("", "BF16", "bfloat16", &brain, 65536.0)]
    {
        for path in files(descr, dtype, bytes) {
            let file = ArrayFile::open(&path).unwrap();
            assert_eq!(file.info("x").unwrap().dtype, name);
            let found = file.f32("x", &[Some(5)]).unwrap();
            assert_eq!(found.as_slice().unwrap()[..4], [1.0, -2.0, 0.5, large], "{path}");
            assert!(found[[4]].is_nan());
            let mut rows = Vec::new();
            let mut take = |part: &[f32]| {
                rows.push(part.to_vec());
                Ok::<_, ArrayError>(())
            };
            file.f32_rows("x", &[Some(5)], 2, &mut take).unwrap();
            assert_eq!(rows[..2], [[1.0, -2.0], [0.5, large]], "{path}");
            assert!(rows[2][0].is_nan() && rows.len() == 3);
            assert!(file.i64("x", &[None]).unwrap_err().to_string().contains(&format!("{name} elements")));
        }
    }
}

#[test]
fn what_lies_behind_the_elements_is_neither_read_nor_passed_over() {
    for extra in [1, 7, 200] {
        let bytes = npy_bytes("'<f4'", "False", "(2,)", &vec![0; 8 + extra]);
        let error = read_all("x.npy", &bytes).unwrap_err().to_string();
        assert!(error.contains(&format!("{extra} bytes behind the last element")), "{error}");
    }
}

#[test]
fn an_element_out_of_its_range_is_named_with_its_place() {
    let (_guard, folder) = test_folder();
    let path = folder.join("t.npz");
    write_npz(&path, &[("tokens", ArrayRef::i64(&[2, 3], &[0, 1, 2, 3, 4, -1]))]).unwrap();
    let file = ArrayFile::open(&path).unwrap();
    let read = |range| file.i64_in("tokens", &[None, Some(3)], "token", range).map(|a| a.len());
    assert_eq!(read(-1..5).unwrap(), 6);
    for (range, why) in
        [(-1..4, "token 4 at [1, 1] is not in -1..4"), (0..5, "token -1 at [1, 2] is not in 0..5")]
    {
        assert_eq!(read(range).unwrap_err().to_string(), format!("{path}: array `tokens`: {why}"));
    }
}

#[test]
fn a_name_that_is_nearly_known_is_no_other_array() {
    let (_guard, folder) = test_folder();
    let path = folder.join("golden.npz");
    let one = ArrayRef::f32(&[1], &[1.0]);
    let others = |arrays: &[(&str, ArrayRef<'_>)]| {
        write_npz(&path, arrays).unwrap();
        let file = ArrayFile::open(&path).unwrap();
        file.others(&["logits", "entropy"]).map(|o| o.join(" ")).map_err(|e| e.kind.to_string())
    };
    assert_eq!(others(&[("logits", one), ("weights", one), ("hidden", one)]).unwrap(), "weights hidden");
    // Beside the array that is meant, a similar name is another one.
    assert_eq!(others(&[("logits", one), ("logits2", one)]).unwrap(), "logits2");
    let wrong = others(&[("logits", one), ("entropies", one)]).unwrap_err();
    assert!(wrong.contains("is `entropy` meant?"), "{wrong}");
    let wrong = others(&[("logits", ArrayRef::f32(&[0, 4], &[]))]).unwrap_err();
    assert!(wrong.starts_with("shape [0, 4] has no elements"), "{wrong}");
}

#[test]
fn of_images_the_type_is_blamed_where_the_type_is_wrong() {
    let (_guard, folder) = test_folder();
    let path = folder.join("samples.npz");
    write_npz(&path, &[("arr_0", ArrayRef::f32(&[1, 2, 2, 3], &[0.0; 12]))]).unwrap();
    let error = ImageNpz::open(&path).unwrap_err().to_string();
    assert!(
        error.ends_with("float32 elements of shape [1, 2, 2, 3] do not fit uint8 without loss"),
        "{error}"
    );
    write_npz(&path, &[("arr_0", ArrayRef::u8(&[1, 3, 2, 2], &[0; 12]))]).unwrap();
    let error = ImageNpz::open(&path).unwrap_err().to_string();
    assert!(error.ends_with("shape [1, 3, 2, 2] where [any, any, any, 3] is wanted (uint8)"), "{error}");
}

#[test]
fn file_names_and_files_that_are_not_there_are_named() {
    let (_guard, folder) = test_folder();
    let error = ArrayFile::open(folder.join("x.pt")).unwrap_err();
    assert!(matches!(error.kind, ArrayErrorKind::UnknownFormat), "{error}");
    for name in ["x.npz", "x.npy", "x.safetensors"] {
        let error = ArrayFile::open(folder.join(name)).unwrap_err();
        assert!(matches!(error.kind, ArrayErrorKind::Io(_)) && error.to_string().contains(name), "{error}");
    }
}

#[test]
fn what_does_not_fit_together_is_not_written() {
    let (_guard, folder) = test_folder();
    let path = folder.join("x.npz");
    for arrays in [
        &[("a", ArrayRef::f32(&[2], &[1.0]))][..],
        &[("", ArrayRef::f32(&[1], &[1.0]))],
        &[("a", ArrayRef::u8(&[1], &[1])), ("a", ArrayRef::u8(&[1], &[1]))],
    ] {
        assert!(matches!(write_npz(&path, arrays).unwrap_err().kind, ArrayErrorKind::Write(_)));
        assert!(matches!(write_safetensors(&path, arrays).unwrap_err().kind, ArrayErrorKind::Write(_)));
    }
    assert!(write_safetensors(&path, &[("__metadata__", ArrayRef::u8(&[1], &[1]))]).is_err());
    assert!(write_npy(&path, &ArrayRef::i64(&[3], &[1])).is_err());
    assert_eq!(fs_err::read_dir(&folder).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn images_are_written_one_by_one() {
    let (_guard, folder) = test_folder();
    let path = folder.join("samples.npz");
    let mut writer = ImageNpzWriter::create(&path, 2, 3, 4).unwrap();
    for i in 0..4 {
        writer.push(&[i; 18]).unwrap();
        assert!(!path.exists(), "the file appears only when it is complete");
    }
    assert!(writer.push(&[0; 18]).is_err(), "one too many");
    assert_eq!(writer.pushed(), 4);
    writer.finish_with(&[("arr_1", ArrayRef::i64(&[4], &[0, 1, 2, 3]))]).unwrap();
    let file = ArrayFile::open(&path).unwrap();
    let images = file.u8("arr_0", &[Some(4), Some(2), Some(3), Some(3)]).unwrap();
    assert_eq!(images[[3, 1, 2, 2]], 3);
    assert_eq!(file.i64("arr_1", &[Some(4)]).unwrap()[[2]], 2);
}

#[test]
fn incomplete_image_files_do_not_appear() {
    let (_guard, folder) = test_folder();
    let path = folder.join("samples.npz");
    let mut writer = ImageNpzWriter::create(&path, 1, 1, 2).unwrap();
    assert!(writer.push(&[0; 4]).is_err(), "another size");
    writer.push(&[0; 3]).unwrap();
    let error = writer.finish().unwrap_err().to_string();
    assert!(error.contains("1 of the announced 2 images"), "{error}");
    assert!(ImageNpzWriter::create(&path, usize::MAX, 2, 2).is_err());
    assert_eq!(fs_err::read_dir(&folder).unwrap().count(), 0);
}

fn valid(name: &str) -> Vec<u8> {
    let (_guard, folder) = test_folder();
    let path = folder.join(name);
    let arrays = sample();
    match path.extension() {
        Some("npz") => write_npz(&path, &refs(&arrays)).unwrap(),
        Some("npy") => write_npy(&path, &(&arrays[0].1).into()).unwrap(),
        _ => write_safetensors(&path, &refs(&arrays)).unwrap(),
    }
    fs_err::read(&path).unwrap()
}

#[test]
fn files_cut_anywhere_are_refused_with_their_name() {
    for name in ["x.npy", "x.safetensors", "x.npz"] {
        let bytes = valid(name);
        assert!(read_all(name, &bytes).is_ok());
        for end in 0..bytes.len() {
            let error = read_all(name, &bytes[..end]).expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), which in 0_usize..3) {
        let (name, magic) = [("x.npy", &b"\x93NUMPY\x01\x00"[..]), ("x.npz", b"PK\x03\x04"), ("x.safetensors", b"")][which];
        let _ = read_all(name, &bytes);
        let _ = read_all(name, &[magic, &bytes].concat());
    }

    #[test]
    fn damaged_files_never_panic(which in 0_usize..3, hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let name = ["x.npy", "x.npz", "x.safetensors"][which];
        let mut bytes = valid(name);
        for (at, value) in hits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = read_all(name, &bytes);
    }

    #[test]
    fn header_texts_never_panic(text in "[\\{\\}\\[\\]\\(\\)'\", :a-zA-Z0-9<|]{0,80}") {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.extend([0; 16]);
        let _ = read_all("x.npy", &bytes);
    }
}
