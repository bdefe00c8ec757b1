# Sourced, by POSIX sh: puts the folders of CUDA's libraries into LD_LIBRARY_PATH where the dynamic linker would not find them by itself. They
# are looked for where the toolkit installs itself and in Python's nvidia packages, which bring torch its own.
lk_cuda_found() { (ldconfig -p || /sbin/ldconfig -p) 2>/dev/null | grep -q 'libcublasLt\.so\.13' && (ldconfig -p || /sbin/ldconfig -p) 2>/dev/null | grep -q 'libcudnn\.so\.9'; }
lk_cuda_named() { case ":${LD_LIBRARY_PATH:-}:" in *cublas* | *cuda* | *cu13*) return 0 ;; *) return 1 ;; esac; }
if ! lk_cuda_named && ! lk_cuda_found; then
  lk_folders=
  for lk_folder in "${CUDA_HOME:-/usr/local/cuda}/lib64"; do
    [ -e "$lk_folder/libcublasLt.so.13" ] && lk_folders=$lk_folder
  done
  for lk_folder in $(python3 - 2>/dev/null <<'TEXT'
import glob, importlib.util
found = importlib.util.find_spec("nvidia")
for place in found.submodule_search_locations if found else []:
    for name in ("cublasLt.so.13", "cudnn.so.9", "nccl.so.2", "cudart.so.13", "nvrtc.so.13"):
        for file in glob.glob(place + "/*/lib/lib" + name):
            print(file.rsplit("/", 1)[0])
TEXT
  ); do
    case ":$lk_folders:" in *":$lk_folder:"*) ;; *) lk_folders=${lk_folders:+$lk_folders:}$lk_folder ;; esac
  done
  if [ -n "$lk_folders" ]; then
    LD_LIBRARY_PATH=$lk_folders${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH
  fi
fi
