include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(config_dir "${CMAKE_INSTALL_LIBDIR}/cmake/centermask")
install(TARGETS centermask_core EXPORT centermaskTargets
  ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}" LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
if(TARGET centermask_ort)
  install(TARGETS centermask_ort LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
endif()
install(DIRECTORY cpp/include/centermask DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT centermaskTargets NAMESPACE centermask:: DESTINATION "${config_dir}")
configure_package_config_file("${CMAKE_CURRENT_SOURCE_DIR}/cmake/centermaskConfig.cmake.in"
  "${CMAKE_CURRENT_BINARY_DIR}/centermaskConfig.cmake" INSTALL_DESTINATION "${config_dir}"
  PATH_VARS CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/centermaskConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/centermaskConfig.cmake"
  "${CMAKE_CURRENT_BINARY_DIR}/centermaskConfigVersion.cmake" DESTINATION "${config_dir}")
