# centermask_cuda_architectures(<version of nvcc> <output>): every card from Turing on that this nvcc knows, Xavier where
# it is known, and the newest desktop card's PTX for those that come after it.
function(centermask_cuda_architectures version output)
  if(version VERSION_LESS 11.4)
    message(FATAL_ERROR "CENTERMASK_CUDA=ON needs CUDA 11.4 or newer, and nvcc is ${version}.")
  elseif(version VERSION_LESS 11.8)
    set(architectures 72-real 75-real 80-real 86-real 87)
  elseif(version VERSION_LESS 13)
    set(architectures 72-real 75-real 80-real 86-real 87-real 89-real 90)
  else()
    set(architectures 75-real 80-real 86-real 87-real 89-real 90 110-real)
  endif()
  set(${output} "${architectures}" PARENT_SCOPE)
endfunction()
