//! The names a pickle may call, and what each means as data.

use crate::WeightDType;

/// A `module.name` in a pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Global<'a> {
    /// `collections.OrderedDict` and `defaultdict`: a dictionary.
    OrderedDict,
    /// `torch._utils._rebuild_tensor*`: a view of a storage.
    RebuildTensor(Rebuild),
    /// `torch._utils._rebuild_parameter` and `_with_state`: its first argument.
    RebuildParameter,
    /// `torch._tensor._rebuild_from_type_v2`: its first argument called with its third.
    RebuildFromType,
    /// `torch.Size`: its first argument.
    Size,
    /// A storage class: its elements, and bytes of one.
    StorageType(StorageClass),
    /// An element type, e.g. `torch.float32`; `None` for one that weights are not read from.
    DType(Option<WeightDType>, &'a str),
    /// Anything else that only describes data here; what it makes is opaque.
    Object { module: &'a str, name: &'a str },
    /// A function of Python's own library, or no name at all. It may lie there; it must not be called.
    Hostile { module: &'a str, name: &'a str },
}

/// The versions of `_rebuild_tensor`; their arguments are storage, offset, size, stride, then:
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rebuild {
    /// Nothing.
    V1,
    /// `requires_grad`, hooks, metadata.
    V2,
    /// `requires_grad`, hooks, element type (the storage is one of bytes), metadata.
    V3,
}

/// What the elements of a storage are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StorageClass {
    /// Elements that can be read.
    Known(WeightDType),
    /// Elements that no weight consists of: the class's name and the bytes of an element.
    Other(&'static str, usize),
}

impl StorageClass {
    /// Bytes of one element.
    pub(crate) fn size(self) -> Option<usize> {
        match self {
            Self::Known(dtype) => dtype.size(),
            Self::Other(_, size) => Some(size),
        }
    }
}

/// The one table of names.
///
/// Nothing is ever executed, so any name may stand for opaque data. Names of Python's own library are an exception: what
/// is not a plain type there has no business in a checkpoint, and a file that calls it is refused whole.
pub(crate) fn lookup<'a>(module: &'a str, name: &'a str) -> Global<'a> {
    use Global::{
        DType, Hostile, Object, OrderedDict, RebuildFromType, RebuildParameter, RebuildTensor, Size,
    };
    match (module, name) {
        ("collections", "OrderedDict" | "defaultdict") => OrderedDict,
        ("torch._utils", "_rebuild_tensor") => RebuildTensor(Rebuild::V1),
        ("torch._utils", "_rebuild_tensor_v2") => RebuildTensor(Rebuild::V2),
        ("torch._utils", "_rebuild_tensor_v3") => RebuildTensor(Rebuild::V3),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => RebuildParameter,
        ("torch._tensor", "_rebuild_from_type_v2") => RebuildFromType,
        ("torch", "Size") => Size,
        ("torch" | "torch.storage", _) if let Some(class) = storage(name) => Global::StorageType(class),
        ("torch", _) if let Some(dtype) = element_type(name) => DType(dtype, name),
        _ if !is_name(module) || !is_name(name) => Hostile { module, name },
        _ if is_stdlib(root(module)) && !is_plain_type(module, name) => Hostile { module, name },
        _ => Object { module, name },
    }
}

/// Storage classes, typed and quantised. Untyped ones count bytes; PyTorch itself reads them as uint8.
fn storage(name: &str) -> Option<StorageClass> {
    use StorageClass::{Known, Other};
    Some(match name {
        "FloatStorage" => Known(WeightDType::F32),
        "HalfStorage" => Known(WeightDType::F16),
        "BFloat16Storage" => Known(WeightDType::BF16),
        "DoubleStorage" => Known(WeightDType::F64),
        "LongStorage" => Known(WeightDType::I64),
        "IntStorage" => Known(WeightDType::I32),
        "ShortStorage" => Known(WeightDType::I16),
        "CharStorage" => Known(WeightDType::I8),
        "BoolStorage" => Known(WeightDType::Bool),
        "ByteStorage" | "UntypedStorage" | "TypedStorage" => Known(WeightDType::U8),
        "ComplexFloatStorage" => Other("torch.ComplexFloatStorage", 8),
        "ComplexDoubleStorage" => Other("torch.ComplexDoubleStorage", 16),
        "QInt32Storage" => Other("torch.QInt32Storage", 4),
        "QInt8Storage" => Other("torch.QInt8Storage", 1),
        "QUInt8Storage" => Other("torch.QUInt8Storage", 1),
        "QUInt4x2Storage" => Other("torch.QUInt4x2Storage", 1),
        "QUInt2x4Storage" => Other("torch.QUInt2x4Storage", 1),
        _ => return None,
    })
}

fn element_type(name: &str) -> Option<Option<WeightDType>> {
    Some(match name {
        "float32" | "float" => Some(WeightDType::F32),
        "float16" | "half" => Some(WeightDType::F16),
        "bfloat16" => Some(WeightDType::BF16),
        "float64" | "double" => Some(WeightDType::F64),
        "int64" | "long" => Some(WeightDType::I64),
        "int32" | "int" => Some(WeightDType::I32),
        "int16" | "short" => Some(WeightDType::I16),
        "int8" => Some(WeightDType::I8),
        "uint8" => Some(WeightDType::U8),
        "uint16" => Some(WeightDType::U16),
        "uint32" => Some(WeightDType::U32),
        "uint64" => Some(WeightDType::U64),
        "bool" => Some(WeightDType::Bool),
        _ if ["float8_", "float4_", "complex", "qint", "quint", "bits"]
            .iter()
            .any(|p| name.starts_with(p)) =>
        {
            None
        }
        _ => return None,
    })
}

/// Identifiers joined by dots.
fn is_name(name: &str) -> bool {
    name.split('.').all(|part| {
        part.chars().all(|c| c == '_' || c.is_alphanumeric())
            && part.starts_with(|c: char| !c.is_ascii_digit())
    })
}

fn root(module: &str) -> &str {
    module.split('.').next().unwrap_or(module)
}

fn is_stdlib(module: &str) -> bool {
    STDLIB.split_ascii_whitespace().any(|m| m == module)
}

/// Types of Python's own library whose values are plain data.
fn is_plain_type(module: &str, name: &str) -> bool {
    match root(module) {
        "builtins" | "__builtin__" => matches!(
            name,
            "set"
                | "frozenset"
                | "list"
                | "dict"
                | "tuple"
                | "bytearray"
                | "bytes"
                | "complex"
                | "int"
                | "long"
                | "float"
                | "bool"
                | "str"
                | "unicode"
                | "range"
                | "xrange"
                | "slice"
                | "object"
                | "type"
                | "Ellipsis"
                | "NotImplemented"
        ),
        "collections" | "_collections" | "datetime" | "_datetime" | "decimal" | "_decimal" | "_pydecimal"
        | "fractions" | "enum" | "uuid" | "ipaddress" | "pathlib" | "zoneinfo" | "array" | "string"
        | "numbers" | "typing" | "dataclasses" | "logging" => true,
        "argparse" => name == "Namespace",
        "types" => matches!(name, "SimpleNamespace" | "MappingProxyType"),
        "copyreg" | "copy_reg" => matches!(name, "_reconstructor" | "__newobj__" | "__newobj_ex__"),
        "functools" => name == "partial",
        "random" => name == "Random",
        "re" => name == "_compile",
        "time" => name == "struct_time",
        "_codecs" => name == "encode",
        _ => false,
    }
}

/// The top-level modules of Python's own library (3.8 to 3.13, and those of Python 2 that moved).
const STDLIB: &str = "\
    StringIO __builtin__ _abc _aix_support _android_support _apple_support _ast _asyncio _bisect _blake2 \
    _bootsubprocess _bz2 _codecs _codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw \
    _collections _collections_abc _colorize _compat_pickle _compression _contextvars _crypt _csv _ctypes \
    _curses _curses_panel _datetime _dbm _decimal _elementtree _frozen_importlib _frozen_importlib_external \
    _functools _gdbm _hashlib _heapq _imp _interpchannels _interpqueues _interpreters _io _ios_support _json \
    _locale _lsprof _lzma _markupbase _md5 _msi _multibytecodec _multiprocessing _opcode _operator \
    _osx_support _overlapped _pickle _posixshmem _posixsubprocess _py_abc _pydecimal _pyio _pyrepl _queue \
    _random _scproxy _sha1 _sha256 _sha3 _sha512 _signal _sitebuiltins _socket _sqlite3 _sre _ssl _stat \
    _statistics _string _strptime _struct _suggestions _symtable _sysconfig _testcapi _thread _threading_local \
    _tkinter _tokenize _tracemalloc _typing _uuid _warnings _weakref _weakrefset _winapi _zoneinfo abc aifc \
    antigravity argparse array ast asynchat asyncio asyncore atexit audioop base64 bdb binascii bisect \
    builtins bz2 cPickle cProfile cStringIO calendar cgi cgitb chunk cmath cmd code codecs codeop collections \
    colorsys commands compileall concurrent configparser contextlib contextvars copy copy_reg copyreg crypt \
    csv ctypes curses dataclasses datetime dbm decimal difflib dircache dis distutils doctest email encodings \
    ensurepip enum errno faulthandler fcntl filecmp fileinput fnmatch fractions ftplib functools gc \
    genericpath getopt getpass gettext glob graphlib grp gzip hashlib heapq hmac html http imaplib imghdr imp \
    importlib inspect io ipaddress itertools json keyword lib2to3 linecache locale logging lzma mailbox \
    mailcap marshal math mimetypes mmap modulefinder msilib msvcrt multiprocessing netrc nis nntplib nt ntpath \
    nturl2path numbers opcode operator optparse os os2 ossaudiodev pathlib pdb pickle pickletools pipes \
    pkgutil platform plistlib popen2 poplib posix posixpath pprint profile pstats pty pwd py_compile pyclbr \
    pydoc pydoc_data pyexpat queue quopri random re readline reprlib resource rlcompleter runpy sched secrets \
    select selectors shelve shlex shutil signal site smtpd smtplib sndhdr socket socketserver spwd sqlite3 \
    sre_compile sre_constants sre_parse ssl stat statistics string stringprep struct subprocess sunau symtable \
    sys sysconfig syslog tabnanny tarfile telnetlib tempfile termios textwrap threading time timeit tkinter \
    token tokenize tomllib trace traceback tracemalloc tty turtle turtledemo types typing unicodedata unittest \
    urllib urllib2 uu uuid venv warnings wave weakref webbrowser winreg winsound wsgiref xdrlib xml xmlrpc \
    zipapp zipfile zipimport zlib zoneinfo";

/// What an opaque object is, for messages.
pub(crate) fn describe(module: &str, name: &str) -> String {
    match (root(module), name) {
        ("numpy", "_reconstruct" | "_frombuffer") => "a numpy array".to_owned(),
        ("numpy", "scalar") => "a numpy scalar".to_owned(),
        ("torch", "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor") => "a sparse tensor".to_owned(),
        ("torch", "_rebuild_qtensor") => "a quantised tensor".to_owned(),
        ("torch", "_rebuild_meta_tensor_no_storage") => {
            "a tensor on the device `meta`, which has no data".to_owned()
        }
        ("torch", "_rebuild_nested_tensor") => "a nested tensor".to_owned(),
        ("torch", "_rebuild_wrapper_subclass") => "a tensor subclass without data of its own".to_owned(),
        (
            "torch",
            "_rebuild_device_tensor_from_numpy"
            | "_rebuild_xla_tensor"
            | "_rebuild_device_tensor_from_cpu_tensor",
        ) => "a tensor of another device".to_owned(),
        _ => format!("an object made by `{}`", dotted(module, name)),
    }
}

/// `module.name`, cut to a readable length.
pub(super) fn dotted(module: &str, name: &str) -> String {
    let full = format!(
        "{}.{}",
        module.chars().take(200).collect::<String>(),
        name.chars().take(200).collect::<String>()
    );
    full.escape_debug().to_string()
}
